"""The program that draws one batch of images, and the seeds of its noise."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8, UInt32

from seed_jax.models.diffusion import SamplerSteps, StableDiffusion, Unclip, UnclipCondition
from seed_jax.typing import Tree

LATENTS, EMBEDDING_NOISE, NEGATIVE_NOISE = range(3)  # folded into an image's seed: one key per purpose


@flax.struct.dataclass
class DrawBatch:
    """The inputs of images that are drawn together.

    Attributes:
        embeddings: generation embeddings; Stable Diffusion's take the place of a prompt's text states.
        latents: initial noise of the diffusion.
        noise: noise added to unCLIP's embeddings.
        text_states: states of the prompts beside unCLIP's embeddings.
        negative_text_states: states of the negative prompts.
        negative_embeddings: embeddings that guidance moves away from; None uses the unconditional zeros, or for Stable
            Diffusion the negative prompts.
        negative_noise: noise added to the negative embeddings.
    """

    embeddings: Float[Array, "B ..."]
    latents: Float[Array, "B h w C"]
    noise: Float[Array, "B ..."]
    text_states: Float[Array, "B T D"]
    negative_text_states: Float[Array, "B T D"]
    negative_embeddings: Float[Array, "B ..."] | None
    negative_noise: Float[Array, "B ..."]


@functools.partial(jax.jit, static_argnums=(1, 2))
def seeded_noise(seeds: UInt32[Array, " B"], purpose: int, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Return standard normal noise in float32, [B, *shape]; each entry depends on its own seed only."""
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), purpose))(seeds)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def draw_batch(
    decoder: Unclip | StableDiffusion,
    params: Tree,
    batch: DrawBatch,
    steps: SamplerSteps,
    guidance_scale: Float[Array, ""],
    noise_level: Int[Array, ""],
    *,
    guided: bool,
    tile: int | None = None,
    on_step: Callable[[Int[Array, ""]], None] | None = None,
) -> UInt8[Array, "B H W 3"]:
    """Return the decoded images.

    Args:
        decoder: unCLIP or Stable Diffusion.
        params: its parameters.
        batch: inputs.
        steps: table of the sampler.
        guidance_scale: scale of classifier-free guidance.
        noise_level: of unCLIP's embeddings.
        guided: whether the unconditional (or negative) half is computed at all, which doubles the work.
        tile: side in latents of the tiles in which the autoencoder decodes; None decodes at once.
        on_step: called after each step of the sampler.
    """
    condition, negative = conditions(decoder, params, batch, noise_level)
    trajectory = decoder.sample_latents(
        params,
        batch.latents,
        condition,
        steps,
        negative=negative if guided else None,
        guidance_scale=guidance_scale,
        on_step=on_step,
    )
    pixels = decoder.decode_latents(params, trajectory.final, tile=tile)
    return jnp.round(pixels * 255).astype(jnp.uint8)


def conditions(
    decoder: Unclip | StableDiffusion, params: Tree, batch: DrawBatch, noise_level: Int[Array, ""]
) -> tuple[Any, Any]:
    """Return the condition of the images, and the one that guidance moves away from."""
    if isinstance(decoder, StableDiffusion):
        negative = batch.negative_text_states if batch.negative_embeddings is None else batch.negative_embeddings
        return batch.embeddings, negative
    levels = jnp.full(batch.embeddings.shape[:1], noise_level)
    labels = decoder.class_labels(params, batch.embeddings, batch.noise, levels)
    return UnclipCondition(batch.text_states, labels), _negative_condition(decoder, params, batch)


def _negative_condition(unclip: Unclip, params: Tree, batch: DrawBatch) -> UnclipCondition:
    """Return the unconditional input; by default the whole class label is zero, noise level included."""
    count = batch.embeddings.shape[0]
    if batch.negative_embeddings is None:
        labels = jnp.zeros((count, unclip.config.class_width))
    else:
        # Level 0 regardless of the level of the images, as in the original.
        level = jnp.zeros((count,), jnp.int32)
        labels = unclip.class_labels(params, batch.negative_embeddings, batch.negative_noise, level)
    return UnclipCondition(batch.negative_text_states, labels)
