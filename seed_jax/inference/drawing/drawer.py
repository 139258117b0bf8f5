"""Draw pictures from generation embeddings: batches, seeds, guidance, prompts, many devices (spec B.1, B.2).

The original draws one picture at a time from noise that changes from run to run. Here all noise of a picture comes from
its own seed, so that a picture is the same alone, in any batch and on any number of devices (to float rounding).
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.inference.drawing.batch import EMBEDDING_NOISE, LATENTS, NEGATIVE_NOISE, Batch, draw_batch, seeded_noise
from seed_jax.inference.drawing.request import DrawOptions, Request, check_options, make_request
from seed_jax.models.diffusion import Unclip, UnclipConfig, plan
from seed_jax.precision import Precision, as_dtype

KIND = "unclip"  # of its model directory
PROMPTS_KEPT = 256  # states of this many prompts are computed once, 77 MiB at the released sizes


class Drawer:
    """Draws with one decoder, whose parameters lie on every device of a mesh."""

    def __init__(
        self,
        config: UnclipConfig,
        params: dict,
        *,
        vocabulary: ClipVocabulary | None = None,
        mesh: Mesh | None = None,
        dtype: str = "float32",
        vae_dtype: str = "float32",
        attention: str | None = None,
    ):
        """Convert and place the parameters.

        Args:
            vocabulary: needed for prompts other than the empty one.
            mesh: pictures are spread over its data axes; by default over all local devices.
            dtype: number format of the UNet and the text encoder; `vae_dtype` is the autoencoder's.
            attention: implementation of `attend`, by default cuDNN's on GPUs in 16 bits and "chunked" elsewhere.
        """
        self.mesh = mesh or sharding.make_mesh({"replica": -1}, jax.local_devices())
        if attention is None:
            on_gpu = self.mesh.devices.flat[0].platform == "gpu"
            attention = "cudnn" if on_gpu and as_dtype(dtype).itemsize == 2 else "chunked"
        self.unclip = Unclip(config, Precision(dtype, dtype), Precision(vae_dtype, vae_dtype), attention)
        formats = {"unet": dtype, "text": dtype, "vae": vae_dtype, "normalizer": "float32"}
        self.params = {
            part: jax.device_put(_cast(params[part], name), sharding.replicated(self.mesh))
            for part, name in formats.items()
        }
        self.vocabulary = vocabulary
        self._bar, self._base = None, 0
        self._text_states = functools.lru_cache(PROMPTS_KEPT)(self._encode_prompt)
        self._encode = jax.jit(self.unclip.text_states)
        self._draw_batch = jax.jit(self._on_mesh, static_argnames=("guided", "tile", "progress"))

    @classmethod
    def load(cls, directory: str | Path, **options) -> "Drawer":
        """Read a model directory of kind "unclip"; `options` are those of the class."""
        loaded = model_dir.load(directory, KIND)
        config = UnclipConfig.from_dict(loaded.config.get("sizes", {}), str(loaded.directory / model_dir.CONFIG))
        has_words = (loaded.directory / "vocab.json").is_file()
        vocabulary = ClipVocabulary.load(loaded.directory) if has_words else None
        return cls(config, drawing_params(loaded.params), vocabulary=vocabulary, **options)

    @property
    def config(self) -> UnclipConfig:
        return self.unclip.config

    def draw(
        self,
        embeddings: Float[np.ndarray | Array, "B E"],
        seeds: Sequence[int],
        options: DrawOptions | None = None,
        *,
        batch_size: int = 8,
        progress: bool = False,
        **more,
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Return one picture an embedding.

        Args:
            seeds: one a picture, 0 to 2**32 - 1.
            options: sampler, steps, guidance and so on.
            batch_size: pictures at a time on each device.
            progress: show a bar of evaluations.
            more: each for all pictures (one row) or one each: `negative_embeddings` to be guided away from (otherwise
                the unconditional zeros); `prompts`, `negative_prompts`, which accompany the embeddings; and instead of
                what the seeds give, `latents` (channels last), `noise` and `negative_noise` (on the embeddings).
        """
        return np.concatenate(list(self.stream(embeddings, seeds, options, batch_size, progress, **more)))

    def stream(
        self,
        embeddings: Float[np.ndarray | Array, "B E"],
        seeds: Sequence[int],
        options: DrawOptions | None = None,
        batch_size: int = 8,
        progress: bool = False,
        **more,
    ) -> Iterator[UInt8[np.ndarray, "N H W 3"]]:
        """Yield the pictures of `draw` in order, a batch at a time."""
        options = options or DrawOptions()
        check_options(self.config, options)
        if batch_size < 1:
            raise UserError(f"The batch size is {batch_size}: expected at least 1.")
        request = make_request(self.config, embeddings, seeds, **more)
        steps = plan(options.sampler or self.config.sampler, self.config.noise, options.steps)
        shards = sharding.batch_shards(self.mesh)
        rows = min(batch_size, -(-len(request) // shards)) * shards
        starts = range(0, len(request), rows)
        with tqdm(total=len(starts) * len(steps), unit="step", desc="drawing", disable=not progress) as self._bar:
            for number, start in enumerate(starts):
                self._base = number * len(steps)
                # The last batch is filled up with repetitions, so that one program serves all of them.
                batch = self._batch(request, np.minimum(np.arange(start, start + rows), len(request) - 1))
                drawn = self._draw_batch(
                    self.params, batch, steps, jnp.float32(options.guidance_scale), jnp.int32(options.noise_level),
                    guided=options.guidance_scale > 1, tile=options.tile, progress=progress,
                )  # fmt: skip
                pictures = np.asarray(drawn)[: len(request) - start]
                jax.effects_barrier()  # the bar's last reports
                yield pictures

    def _batch(self, request: Request, index: np.ndarray) -> Batch:
        unet, width, seeds = self.config.unet, self.config.embedding_width, jnp.asarray(request.seeds[index])

        def given_or_seeded(given, purpose, *shape):
            return seeded_noise(seeds, purpose, shape) if given is None else jnp.asarray(given[index])

        negative = request.negative_embeddings
        batch = Batch(
            embeddings=jnp.asarray(request.embeddings[index]),
            latents=given_or_seeded(request.latents, LATENTS, unet.sample_size, unet.sample_size, unet.in_channels),
            noise=given_or_seeded(request.noise, EMBEDDING_NOISE, width),
            text_states=jnp.stack([self._text_states(request.prompts[i]) for i in index]),
            negative_text_states=jnp.stack([self._text_states(request.negative_prompts[i]) for i in index]),
            negative_embeddings=None if negative is None else jnp.asarray(negative[index]),
            negative_noise=given_or_seeded(request.negative_noise, NEGATIVE_NOISE, width),
        )
        return jax.device_put(batch, sharding.batch_sharding(self.mesh))

    def _encode_prompt(self, prompt: str) -> Float[Array, "T D"]:
        if prompt and self.vocabulary is None:
            raise UserError("This decoder's directory holds no text vocabulary: only the empty prompt is possible.")
        ids, length = self.config.prompt, self.config.text.max_length
        empty = [ids.bos, ids.eos] + [ids.pad] * (length - 2)
        tokens = self.vocabulary.encode(prompt) if prompt else empty
        return self._encode(self.params, jnp.asarray([tokens], jnp.int32))[0]

    def _on_mesh(self, params, batch, steps, scale, level, *, guided: bool, tile: int | None, progress: bool):
        """Run every device on its own pictures: nothing is exchanged between devices."""
        on_step = (lambda done: jax.debug.callback(self._report, done)) if progress else None
        whole, cut = PartitionSpec(), PartitionSpec(sharding.BATCH_AXES)
        run = jax.shard_map(
            functools.partial(draw_batch, self.unclip, guided=guided, tile=tile, on_step=on_step),
            mesh=self.mesh,
            in_specs=(whole, cut, whole, whole, whole),
            out_specs=cut,
            check_vma=False,
        )
        return run(params, batch, steps, scale, level)

    def _report(self, done: Int[Array, ""]) -> None:
        """Move the bar from inside the compiled loop; all devices report, the fastest counts."""
        self._bar.update(max(0, self._base + int(done) - self._bar.n))


def drawing_params(stored: dict) -> dict:
    """Return the decoder's parameters: of a training workdir those that are drawn with, the moving averages."""
    if "params" not in stored:
        return stored
    return {**stored["params"], **{part: tree for part, tree in stored["ema"].items() if part != "updates"}}


def _cast(params: dict, name: str) -> dict:
    return jax.tree.map(lambda leaf: leaf.astype(as_dtype(name)), params)
