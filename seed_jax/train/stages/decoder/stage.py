"""The stage `decoder`: fine-tune the UNet of unCLIP or Stable Diffusion 1.4 on generation embeddings (spec B, G).

The original uses Stable Diffusion as it is, though its embeddings come from 32 codes and not from CLIP. Here the UNet
learns to decode what the codes really give. At small sizes the autoencoder can be trained as well, before the UNet; its
decoder alone can be fine-tuned at any time.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from PIL import Image

from seed_jax import images, sharding
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.data.batches.pairs import ImageReader
from seed_jax.data.batches.record_stream import MixtureComponent
from seed_jax.data.build import build
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from seed_jax.files import AnyPath, write_json
from seed_jax.losses.next_token import WeightedSum
from seed_jax.models.diffusion import DECODERS, StableDiffusion, Unclip, UnclipCondition
from seed_jax.models.diffusion.latent_diffusion import LatentDiffusion
from seed_jax.models.diffusion.noise_schedule import add_noise, prediction_target
from seed_jax.models.diffusion.unclip_conditioning import drop_labels
from seed_jax.models.diffusion.vae import DECODER_PARAMS
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.config import DecoderConfig
from seed_jax.train.config.decoder import DecoderModelConfig
from seed_jax.train.optimizer import EMA, update_ema
from seed_jax.train.runtime.workdir import demo_directory
from seed_jax.train.stage import Batches, Evaluator, LossOutput, Stage
from seed_jax.train.stages.decoder import init
from seed_jax.train.stages.decoder.embedding_source import check_exists, make_source
from seed_jax.train.stages.held_out_loss import held_out_evaluators
from seed_jax.train.stages.pair_data import as_shapes, image_batches, mixture_components
from seed_jax.typing import ParamPath, Tree

SAMPLES = "samples.png"
_DEMO_IMAGES = 512
LOSS_NAMES = {"v_prediction": "loss_velocity", "epsilon": "loss_noise"}
# `model.decoder` -> the official release, and the import command
_RELEASES = {"unclip": ("Stable Diffusion 2.1 unCLIP", "unclip"), "stable_diffusion": ("Stable Diffusion 1.4", "sd")}


class DecoderStage(Stage[DecoderConfig]):
    """Fine-tuning of a diffusion decoder."""

    config_class = DecoderConfig
    untracked_collections = (EMA,)

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        precision = Precision("float32", config.precision.compute)
        self.kind = ModelKind(config.model.decoder)
        _, decoder_class = DECODERS[config.model.decoder]
        self.source = make_source(config.source, precision, text_states=decoder_class is StableDiffusion)
        architecture, self._vocabulary_files = init.architecture(config.model, self.source.embedding_shape)
        self.decoder: Unclip | StableDiffusion = decoder_class(
            architecture, precision, precision, remat=config.model.remat
        )
        data = config.data
        self._reader = ImageReader(
            self.source.image_size, architecture.image_size, data.interpolation, data.keep_ratio, data.flip
        )
        self._mixture: tuple[MixtureComponent, ...] = ()

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    def abstract_variables(self) -> Tree:
        return init.abstract_variables(self.decoder, self.source, self.config.model.trained_collections)

    def is_trainable(self, path: ParamPath) -> bool:
        """The parts that train and their moving averages change."""
        if path[0] != "params":
            return path[0] == EMA
        train = self.config.model.train
        return path[1] in train or ("vae_decoder" in train and path[1] == "vae" and path[2] in DECODER_PARAMS)

    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        """Compute the loss of the parts that train: prediction of the UNet, reconstruction of the autoencoder."""
        options, params = self.config.model, variables["params"]
        pixels = batch["target"].astype(jnp.float32) / 255.0
        key_latents, key_unet = jax.random.split(key)
        moments = self.decoder.encode_image(params, pixels)
        latents = moments.sample(key_latents)
        terms: dict[str, Float[Array, " B"]] = {}
        if "vae" in options.trained_collections:
            noisy = _add_noise_of_random_scale(latents, options.latent_noise, jax.random.fold_in(key, 2))
            decoded = self.decoder.vae.decode(params["vae"], noisy / self.decoder.config.vae.scaling_factor)
            # Squared only: absolute errors would spend the latents on texture, of which there is more than of edges.
            terms["loss_pixels"] = jnp.square(decoded - (pixels * 2 - 1)).mean((1, 2, 3))
            if options.perceptual_weight:
                features = functools.partial(self.source.features, variables["source"])
                error = features(decoded / 2 + 0.5) - jax.lax.stop_gradient(features(pixels))
                terms["loss_features"] = options.perceptual_weight * jnp.square(error).mean((1, 2))
            if "vae" in options.train:
                terms["loss_divergence"] = options.divergence_weight * moments.kl_divergence()
        if "unet" in options.train:
            embeddings = self.source.embed(variables["source"], images.normalize(batch["image"]))
            fixed = jax.lax.stop_gradient(latents)
            name = LOSS_NAMES[self.decoder.config.noise.prediction_type]
            terms[name] = denoising_loss(options, self.decoder, params, fixed, embeddings, key_unet)
        ones = jnp.ones(len(pixels), jnp.float32)
        total = jnp.stack(list(terms.values())).sum(0)
        return LossOutput(
            WeightedSum.from_terms(total, ones),
            {name: WeightedSum.from_terms(term, ones) for name, term in terms.items()},
        )

    def update_statistics(self, before: Tree, after: Tree, statistics: Mapping[str, Array]) -> Tree:
        """Update the moving averages of what trains; of a part of which only some trains, the rest stays."""
        del statistics
        averages, params = before[EMA], after["params"]
        trained = {part: {name: averages[part][name] for name in params[part]} for part in params}
        updated = update_ema({**trained, "updates": averages["updates"]}, params, self.config.model.ema_decay)
        whole = {part: {**averages[part], **updated[part]} for part in params}
        return {**after, EMA: {**whole, "updates": updated["updates"]}}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return as_shapes(self._reader.row_spec())

    def flops_per_unit(self) -> float:
        params = sharding.unbox(self.abstract_variables()["params"])
        return flops.decoder_flops(params, self.decoder.config, self.config.model.train)

    @property
    def flops_convention(self) -> str:
        return flops.DECODER_CONVENTION

    def prepare(self, workdir: AnyPath) -> None:
        check_exists(self.config.source)
        init_from = self.config.model.init
        if init_from and not Path(init_from).exists():
            release, command = _RELEASES[self.config.model.decoder]
            raise UserError(
                f"model.init {init_from} does not exist: get {release} with `seed-jax fetch` and `seed-jax import "
                f"{command} --from DIR --out {init_from}`."
            )
        if self.config.data.demo:
            self._mixture = (MixtureComponent(_demo_shards(demo_directory(workdir, "demo_world"))),)
        else:
            self._mixture = mixture_components(self.config.data)

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        return init.init_variables(self.config.model.init, self.decoder, self.source, key, shardings)

    def batches(self, local_indices: list[int]) -> Batches:
        return image_batches(self.config.data, self._mixture, self._reader, self.config.seed, local_indices)

    def evaluators(self) -> tuple[Evaluator, ...]:
        """Return the loss on `evaluate.data`, with the same noise and timesteps at every evaluation."""
        config, evaluate = self.config, self.config.evaluate

        def loss(variables: Tree, batch: Mapping[str, Array]) -> LossOutput:
            return self.loss(variables, batch, jax.random.key(0))

        def make_batches(local_indices: list[int]) -> Batches:
            reader = dataclasses.replace(self._reader, flip=0.0)
            return image_batches(config.data, (MixtureComponent(evaluate.data),), reader, config.seed, local_indices)

        return held_out_evaluators(evaluate, loss, make_batches, self.batch_size)

    def model_config(self) -> dict[str, Any]:
        return {"sizes": self.decoder.config.to_dict()}

    def model_files(self) -> dict[str, Path]:
        return self._vocabulary_files

    def finish(self, variables: Tree, workdir: AnyPath) -> None:
        """Write images generated from the embeddings of the first images, with the averaged weights, beside them."""
        count = self.config.samples
        if not count or jax.process_count() > 1:
            return
        # A run without samples needs none of these.
        from seed_jax.inference.contact_sheet import contact_sheet
        from seed_jax.inference.drawing.drawer import Drawer

        batches = self.batches(list(range(count)))
        rows = next(batches)
        batches.close()
        embed = jax.jit(lambda params, pixels: self.source.embed(params, images.normalize(pixels)))
        embeddings = np.asarray(embed(variables["source"], rows["image"]))
        generated = Drawer.load(str(workdir)).draw(embeddings, list(range(count)))
        pairs = [
            [Image.fromarray(np.asarray(pixels)) for pixels in pair]
            for pair in zip(rows["target"], generated, strict=True)
        ]
        contact_sheet(pairs).save(str(workdir / SAMPLES))
        logging.info("Wrote %s: images, and what is generated from their embeddings.", workdir / SAMPLES)


def _add_noise_of_random_scale(
    latents: Float[Array, "B h w C"], largest: float, key: Key[Array, ""]
) -> Float[Array, "B h w C"]:
    """Add Gaussian noise whose standard deviation is uniform from 0 to `largest`, one for each image."""
    if not largest:
        return latents
    key_scale, key_noise = jax.random.split(key)
    scale = largest * jax.random.uniform(key_scale, (len(latents), 1, 1, 1))
    return latents + scale * jax.random.normal(key_noise, latents.shape)


def denoising_loss(
    options: DecoderModelConfig,
    decoder: Unclip | StableDiffusion,
    params: Tree,
    latents: Float[Array, "B h w C"],
    embeddings: Float[Array, "B ..."],
    key: Key[Array, ""],
) -> Float[Array, " B"]:
    """Compute the squared error of the UNet's prediction at a random timestep, for each image."""
    keys = jax.random.split(key, 5)
    count, num_timesteps = len(latents), decoder.config.noise.num_train_timesteps
    timesteps = jax.random.randint(keys[0], (count,), 0, num_timesteps)
    noise = jax.random.normal(keys[1], latents.shape)
    # The prompt is empty, as in generation from codes.
    ids, length = decoder.config.prompt, decoder.config.text.max_length
    empty = jnp.array([[ids.bos, ids.eos] + [ids.pad] * (length - 2)])
    states = jax.lax.stop_gradient(decoder.encode_text(params, empty))
    states = jnp.broadcast_to(states, (count, *states.shape[1:]))
    if isinstance(decoder, StableDiffusion):
        # Without a condition Stable Diffusion is given the empty prompt.
        is_dropped = jax.random.bernoulli(keys[4], options.condition_dropout, (count, 1, 1))
        condition = jnp.where(is_dropped, states, embeddings.astype(states.dtype))
    else:
        levels = jax.random.randint(keys[2], (count,), 0, options.noise_level + 1)
        labels = decoder.class_labels(params, embeddings, jax.random.normal(keys[3], embeddings.shape), levels)
        condition = UnclipCondition(states, drop_labels(labels, options.condition_dropout, keys[4]))
    return prediction_error(decoder, params, latents, noise, timesteps, condition)


def prediction_error(
    decoder: LatentDiffusion,
    params: Tree,
    latents: Float[Array, "B h w C"],
    noise: Float[Array, "B h w C"],
    timesteps: Int[Array, " B"],
    condition: UnclipCondition | Float[Array, "B T D"],
) -> Float[Array, " B"]:
    """Compute the squared error of the UNet's prediction (velocity or noise) at given timesteps, for each image."""
    schedule = decoder.config.noise
    predicted = decoder.denoise(params, add_noise(latents, noise, timesteps, schedule), timesteps, condition)
    return jnp.square(predicted - prediction_target(latents, noise, timesteps, schedule)).mean((1, 2, 3))


def _demo_shards(directory: Path) -> Path:
    """Make shards of drawn scenes, or resume making them."""
    shards, description = directory / "shards", directory / "images.world.json"
    if not shards.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(description, {"task": "captions", "count": _DEMO_IMAGES})
    build.build(open_source("world", [description]), shards, options=BuildOptions(progress=False))
    return shards
