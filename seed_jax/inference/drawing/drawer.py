"""Draw images from generation embeddings: batches, seeds, guidance, prompts, several devices (spec B.1, B.2, G).

The original draws one image at a time from unseeded noise. Here all noise of an image comes from its own seed, so that
an image is the same alone, in any batch and on any number of devices (up to float rounding).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from seed_jax import sharding
from seed_jax.checkpoint import kinds, model_dir
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.inference.drawing.batch import (
    EMBEDDING_NOISE,
    LATENTS,
    NEGATIVE_NOISE,
    DrawBatch,
    draw_batch,
    seeded_noise,
)
from seed_jax.inference.drawing.request import DecoderConfig, DrawOptions, DrawRequest, build_request, resolve_options
from seed_jax.inference.drawing.stepwise import StepwiseDrawing, StepwisePrograms
from seed_jax.inference.programs import shared
from seed_jax.models.diffusion import DECODERS, StableDiffusion, StableDiffusionConfig, Unclip, sampler_steps
from seed_jax.precision import Precision, as_dtype
from seed_jax.typing import Tree

CACHED_PROMPTS = 256  # prompts whose text states are kept, 77 MiB at the released sizes


class Drawer:
    """An image decoder whose parameters are replicated over the devices of a mesh.

    Example:
        drawer = Drawer.load("models/unclip", dtype="bfloat16")
        embeddings = tokenizer.embed_codes(codes)  # an `ImageTokenizer`
        pixels = drawer.draw(embeddings, seeds=range(len(embeddings)))  # uint8 [N, 768, 768, 3]

    Args:
        config: sizes of the model.
        params: parameters of an `Unclip` or `StableDiffusion`.
        vocabulary: of the text encoder; needed for prompts other than the empty one.
        mesh: images are sharded over its data axes; by default over all local devices.
        dtype: dtype of the UNet and the text encoder.
        vae_dtype: dtype of the autoencoder.
        attention: implementation of `attend`; by default "cudnn" on GPUs in 16 bits and "chunked" elsewhere.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Tree,
        *,
        vocabulary: ClipVocabulary | None = None,
        mesh: Mesh | None = None,
        dtype: str = "float32",
        vae_dtype: str = "float32",
        attention: str | None = None,
    ):
        self.mesh = mesh or sharding.make_mesh({"replica": -1}, jax.local_devices())
        if attention is None:
            on_gpu = self.mesh.devices.flat[0].platform == "gpu"
            attention = "cudnn" if on_gpu and as_dtype(dtype).itemsize == 2 else "chunked"
        self.decoder: Unclip | StableDiffusion = decoder_class(config)(
            config, Precision(dtype, dtype), Precision(vae_dtype, vae_dtype), attention
        )
        dtypes = {"unet": dtype, "text": dtype, "vae": vae_dtype, "normalizer": "float32"}
        replicated = sharding.replicated_sharding(self.mesh)
        self.params = {
            part: jax.device_put(_cast(params[part], name), replicated)
            for part, name in dtypes.items()
            if part in params
        }
        self.vocabulary = vocabulary
        self._progress = _Progress()
        self._text_states = functools.lru_cache(CACHED_PROMPTS)(self._encode_prompt)
        self._encode_program = _encode_program(self.decoder)
        self._stepwise_programs = _stepwise_programs(self.decoder, self.mesh)
        self._draw_program = _draw_program(self.decoder, self.mesh)

    @classmethod
    def load(cls, directory: str | Path, **options) -> "Drawer":
        """Read a model directory of a decoder, or the newest checkpoint of a decoder's workdir.

        Args:
            directory: model directory or workdir.
            options: keyword arguments of the class.
        """
        loaded = model_dir.load(directory, kinds.DECODERS)
        config_class, _ = DECODERS[loaded.kind]
        config = config_class.from_dict(loaded.config.get("sizes", {}), str(loaded.directory / model_dir.CONFIG))
        has_vocabulary = (loaded.directory / "vocab.json").is_file()
        vocabulary = ClipVocabulary.load(loaded.directory) if has_vocabulary else None
        return cls(config, model_dir.decoder_params(loaded.params), vocabulary=vocabulary, **options)

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def draw_prompts(
        self, prompts: Sequence[str], seeds: Sequence[int], options: DrawOptions | None = None, **inputs
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Draw texts with Stable Diffusion; arguments as of `draw`.

        Raises:
            UserError: the decoder is unCLIP's, which needs image embeddings.
        """
        if not isinstance(self.config, StableDiffusionConfig):
            raise UserError("unCLIP draws image embeddings, which a prompt can only accompany: use `Drawer.draw`.")
        states = np.stack([np.asarray(self._text_states(prompt)) for prompt in prompts])
        return self.draw(states, seeds, options, **inputs)

    def draw(
        self,
        embeddings: Float[np.ndarray | Array, "B ..."],
        seeds: Sequence[int],
        options: DrawOptions | None = None,
        *,
        batch_size: int = 8,
        progress: bool = False,
        **inputs,
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Draw one image per embedding.

        Args:
            embeddings: generation embeddings, see `ImageTokenizer.embed_codes`.
            seeds: one per image, 0 to 2**32 - 1.
            options: sampler, steps, guidance and so on.
            batch_size: images at a time on each device.
            progress: show a progress bar.
            inputs: each given once for all images (one row) or per image: `negative_embeddings`, which guidance moves
                away from (instead of the unconditional zeros); `prompts` and `negative_prompts`, texts beside the
                embeddings; and in place of what the seeds determine, `latents` (channels last), `noise` and
                `negative_noise` (on the embeddings).

        Returns:
            RGB images.

        Raises:
            UserError: an option or a shape is wrong.
        """
        return np.concatenate(list(self.stream(embeddings, seeds, options, batch_size, progress, **inputs)))

    def stream(
        self,
        embeddings: Float[np.ndarray | Array, "B ..."],
        seeds: Sequence[int],
        options: DrawOptions | None = None,
        batch_size: int = 8,
        progress: bool = False,
        **inputs,
    ) -> Iterator[UInt8[np.ndarray, "N H W 3"]]:
        """Yield the images of `draw` in order, a batch at a time."""
        options = resolve_options(self.config, options or DrawOptions())
        assert options.steps is not None and options.guidance_scale is not None  # noqa: PT018  resolved
        if batch_size < 1:
            raise UserError(f"The batch size is {batch_size}, expected at least 1.")
        request = build_request(self.config, embeddings, seeds, **inputs)
        steps = sampler_steps(options.sampler or self.config.sampler, self.config.noise, options.steps)
        num_shards = sharding.num_batch_shards(self.mesh)
        rows = min(batch_size, -(-len(request) // num_shards)) * num_shards
        starts = range(0, len(request), rows)
        on_step = self._progress.update if progress else None
        with tqdm(total=len(starts) * len(steps), unit="step", desc="drawing", disable=not progress) as bar:
            self._progress.bar = bar
            for number, start in enumerate(starts):
                self._progress.completed_steps = number * len(steps)
                # The last batch is padded with repetitions, so that one program serves all batches.
                batch = self._batch(request, np.minimum(np.arange(start, start + rows), len(request) - 1))
                drawn = self._draw_program(
                    self.params, batch, steps, jnp.float32(options.guidance_scale), jnp.int32(options.noise_level),
                    guided=options.guidance_scale > 1, tile=options.tile, on_step=on_step,
                )  # fmt: skip
                images = np.asarray(drawn)[: len(request) - start]
                jax.effects_barrier()  # wait for the last callbacks of the progress bar
                yield images

    def begin(
        self,
        embeddings: Float[np.ndarray | Array, "B ..."],
        seeds: Sequence[int],
        options: DrawOptions | None = None,
        *,
        batch_size: int | None = None,
        **inputs,
    ) -> StepwiseDrawing:
        """Prepare one batch that is drawn a few steps at a time, with other work between them.

        Args:
            embeddings: as in `draw`.
            seeds: as in `draw`.
            options: as in `draw`.
            batch_size: pad the batch to this size, so that few programs serve batches of all sizes.
            inputs: as in `draw`.
        """
        options = resolve_options(self.config, options or DrawOptions())
        assert options.steps is not None and options.guidance_scale is not None  # noqa: PT018  resolved
        request = build_request(self.config, embeddings, seeds, **inputs)
        steps = sampler_steps(options.sampler or self.config.sampler, self.config.noise, options.steps)
        num_shards = sharding.num_batch_shards(self.mesh)
        rows = -(-max(batch_size or 0, len(request)) // num_shards) * num_shards
        batch = self._batch(request, np.minimum(np.arange(rows), len(request) - 1))
        return StepwiseDrawing(self._stepwise_programs, self.params, batch, steps, options, len(request))

    def _batch(self, request: DrawRequest, index: np.ndarray) -> DrawBatch:
        unet, shape = self.config.unet, self.config.embedding_shape
        seeds = jnp.asarray(request.seeds[index])

        def given_or_seeded(given: np.ndarray | None, purpose: int, *shape: int) -> Array:
            return seeded_noise(seeds, purpose, shape) if given is None else jnp.asarray(given[index])

        negative = request.negative_embeddings
        batch = DrawBatch(
            embeddings=jnp.asarray(request.embeddings[index]),
            latents=given_or_seeded(request.latents, LATENTS, unet.sample_size, unet.sample_size, unet.in_channels),
            noise=given_or_seeded(request.noise, EMBEDDING_NOISE, *shape),
            text_states=jnp.stack([self._text_states(request.prompts[i]) for i in index]),
            negative_text_states=jnp.stack([self._text_states(request.negative_prompts[i]) for i in index]),
            negative_embeddings=None if negative is None else jnp.asarray(negative[index]),
            negative_noise=given_or_seeded(request.negative_noise, NEGATIVE_NOISE, *shape),
        )
        return jax.device_put(batch, sharding.batch_sharding(self.mesh))

    def _encode_prompt(self, prompt: str) -> Float[Array, "T D"]:
        ids, length = self.config.prompt, self.config.text.max_length
        if not prompt:
            tokens = [ids.bos, ids.eos] + [ids.pad] * (length - 2)
        elif self.vocabulary is None:
            raise UserError(
                "This decoder's directory has no vocab.json, so only the empty prompt is possible: omit the prompt."
            )
        else:
            tokens = self.vocabulary.encode(prompt)
        return self._encode_program(self.params, jnp.asarray([tokens], jnp.int32))[0]


class _Progress:
    """The progress bar that a running program advances; apart from the drawer, whose parameters no program may keep."""

    def __init__(self):
        self.bar: tqdm | None = None
        self.completed_steps = 0  # of the batches before the present one

    def update(self, done: Int[Array, ""]) -> None:
        """Advance the bar from inside the compiled loop; all devices call back, the fastest one counts."""
        if self.bar is not None:
            self.bar.update(max(0, self.completed_steps + int(done) - self.bar.n))


@shared
def _encode_program(decoder: Unclip | StableDiffusion) -> Callable[..., Any]:
    return jax.jit(decoder.encode_text)


@shared
def _stepwise_programs(decoder: Unclip | StableDiffusion, mesh: Mesh) -> StepwisePrograms:
    return StepwisePrograms(decoder, mesh)


@shared
def _draw_program(decoder: Unclip | StableDiffusion, mesh: Mesh) -> Callable[..., Any]:
    """Return the jitted function that draws each shard of a batch on its own device, without communication."""

    def draw_sharded(
        params: Any, batch: Any, steps: Any, scale: Any, level: Any, *, guided: bool, tile: int | None,
        on_step: Callable[[Int[Array, ""]], None] | None,
    ):  # fmt: skip
        call_back = None if on_step is None else (lambda done: jax.debug.callback(on_step, done))
        replicated, sharded = PartitionSpec(), PartitionSpec(sharding.BATCH_AXES)

        def draw(params: Any, batch: Any, steps: Any, scale: Any, level: Any) -> Array:
            return draw_batch(decoder, params, batch, steps, scale, level, guided=guided, tile=tile, on_step=call_back)

        program = jax.shard_map(
            draw,
            mesh=mesh,
            in_specs=(replicated, sharded, replicated, replicated, replicated),
            out_specs=sharded,
            check_vma=False,
        )
        return program(params, batch, steps, scale, level)

    return jax.jit(draw_sharded, static_argnames=("guided", "tile", "on_step"))


def decoder_class(config: DecoderConfig) -> Any:
    """Return the class of the decoder that has sizes of this type."""
    return next(decoder for config_class, decoder in DECODERS.values() if isinstance(config, config_class))


def _cast(params: Tree, dtype: str) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(as_dtype(dtype)), params)
