"""The stage `decoder`: draw from generation embeddings, by fine-tuning the unCLIP UNet on pictures (spec B).

The original leaves Stable Diffusion as it is, though its embeddings come from 32 codes and not from CLIP. Here the UNet
learns to draw from what the codes really give. At small sizes the autoencoder can be trained as well, before the UNet.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int, Key

from seed_jax import images, sharding
from seed_jax.errors import UserError
from seed_jax.losses.next_token import WeightedSum
from seed_jax.models.diffusion import Condition, Unclip
from seed_jax.models.diffusion.schedules import add_noise, divergence, prediction_target, sample, without_condition
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.optimizer import COLLECTION, next_averages
from seed_jax.train.stage import LossOutput, ParamPath, Stage
from seed_jax.train.stages.decoder import data as decoder_data
from seed_jax.train.stages.decoder import init
from seed_jax.train.stages.decoder.embedding_source import EmbeddingSource, make_source

Tree = dict[str, Any]
KIND = "unclip"
PARTS = ("unet", "vae")


def build(config: ml_collections.ConfigDict, workdir: Path) -> Stage:
    """Make the stage `decoder`."""
    _check(config)
    source = make_source(config)
    sizes, files = init.sizes(config, source.width)
    precision = Precision("float32", config.precision.compute)
    unclip = Unclip(sizes, precision, precision, remat=config.model.remat)
    data = decoder_data.open_pictures(config, workdir, source.image_size, sizes.image_size)
    abstract = functools.partial(init.abstract, unclip, source, tuple(config.model.train))
    return Stage(
        kind=KIND,
        model_config={"sizes": sizes.to_dict()},
        files=files,
        abstract=abstract,
        init=functools.partial(init.start, config, unclip, source),
        trainable=functools.partial(is_trained, tuple(config.model.train)),
        loss=functools.partial(loss, config, unclip, source),
        batches=data.make_batches,
        batch_size=config.data.batch_size,
        row_spec=data.row_spec,
        tokens_per_batch=config.data.batch_size,
        unit="pictures",
        flops_per_token=flops.step_flops(sharding.unbox(abstract()["params"]), sizes, tuple(config.model.train)),
        flops_convention=flops.DECODER_CONVENTION,
        after_step=functools.partial(after_step, config.model.ema_decay),
        finish=functools.partial(decoder_data.show, data, source, config.samples),
    )


def _check(config: ml_collections.ConfigDict) -> None:
    train = tuple(config.model.train)
    if not train or set(train) - set(PARTS):
        raise UserError(f"model.train is {train}, expected one or both of {', '.join(PARTS)}.")
    for key in ("condition_dropout", "ema_decay"):
        if not 0 <= config.model[key] < 1:
            raise UserError(f"model.{key} is {config.model[key]}, expected 0 to less than 1.")
    if COLLECTION not in config.optimizer.following:
        raise UserError(f"optimizer.following is {config.optimizer.following}, expected it to name {COLLECTION!r}.")


def is_trained(parts: tuple[str, ...], path: ParamPath) -> bool:
    """Whether a variable changes: the parts that train, and their moving averages."""
    return path[0] == COLLECTION or (path[0] == "params" and path[1] in parts)


def loss(
    config: ml_collections.ConfigDict,
    unclip: Unclip,
    source: EmbeddingSource,
    variables: Tree,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
) -> LossOutput:
    """Return the losses of the parts that train: velocity (or noise) of the UNet, reconstruction of the autoencoder."""
    params, pixels = variables["params"], batch["target"].astype(jnp.float32) / 255.0
    key_latents, key_unet = jax.random.split(key)
    moments = unclip.encode_pixels(params, pixels)
    latents = sample(moments, key_latents)
    terms = {}
    if "vae" in config.model.train:
        terms["loss_pixels"] = _pixels_error(unclip, params, latents, pixels)
        terms["loss_divergence"] = config.model.divergence_weight * divergence(moments)
    if "unet" in config.model.train:
        embeddings = source.embed(variables["source"], images.normalize(batch["image"]))
        fixed = jax.lax.stop_gradient(latents)
        terms["loss_velocity"] = denoising_loss(config, unclip, params, fixed, embeddings, key_unet)
    ones = jnp.ones(len(pixels), jnp.float32)
    return LossOutput(
        WeightedSum.of(sum(terms.values()), ones), {name: WeightedSum.of(term, ones) for name, term in terms.items()}
    )


def _pixels_error(unclip: Unclip, params: Tree, latents: Array, pixels: Array) -> Float[Array, " B"]:
    rebuilt = unclip.vae.decode(params["vae"], latents / unclip.config.vae.scaling_factor)
    # Squared only: absolute errors would spend the latents on texture, of which there is more than of edges.
    return jnp.square(rebuilt - (pixels * 2 - 1)).mean((1, 2, 3))


def denoising_loss(
    config: ml_collections.ConfigDict,
    unclip: Unclip,
    params: Tree,
    latents: Float[Array, "B h w C"],
    embeddings: Float[Array, "B E"],
    key: Key[Array, ""],
) -> Float[Array, " B"]:
    """Return the squared error of the UNet's prediction at a random timestep, for each picture."""
    keys = jax.random.split(key, 5)
    count, last = len(latents), unclip.config.noise.num_train_timesteps
    timesteps = jax.random.randint(keys[0], (count,), 0, last)
    noise = jax.random.normal(keys[1], latents.shape)
    levels = jax.random.randint(keys[2], (count,), 0, config.model.noise_level + 1)
    labels = unclip.class_labels(params, embeddings, jax.random.normal(keys[3], embeddings.shape), levels)
    labels = without_condition(labels, config.model.condition_dropout, keys[4])
    # The prompt is empty, as where codes are drawn from.
    ids, length = unclip.config.prompt, unclip.config.text.max_length
    empty = jnp.array([[ids.bos, ids.eos] + [ids.pad] * (length - 2)])
    states = jax.lax.stop_gradient(unclip.text_states(params, empty))
    condition = Condition(jnp.broadcast_to(states, (count, *states.shape[1:])), labels)
    return prediction_error(unclip, params, latents, noise, timesteps, condition)


def prediction_error(
    unclip: Unclip,
    params: Tree,
    latents: Float[Array, "B h w C"],
    noise: Float[Array, "B h w C"],
    timesteps: Int[Array, " B"],
    condition: Condition,
) -> Float[Array, " B"]:
    """Return the squared error of the UNet's prediction (velocity or noise) at given timesteps, for each picture."""
    noises = unclip.config.noise
    found = unclip.denoise(params, add_noise(latents, noise, timesteps, noises), timesteps, condition)
    return jnp.square(found - prediction_target(latents, noise, timesteps, noises)).mean((1, 2, 3))


def after_step(decay: float, before: Tree, after: Tree, observed: Mapping[str, Array]) -> Tree:
    """Move the averages."""
    del observed
    return {**after, COLLECTION: next_averages(before[COLLECTION], after["params"], decay)}
