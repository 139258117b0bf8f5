"""What one device computes for a batch of pictures, and where their noise comes from."""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8, UInt32

from seed_jax.models.diffusion import Condition, Steps, Unclip

LATENTS, EMBEDDING_NOISE, NEGATIVE_NOISE = range(3)  # what a key folded out of a picture's seed is for


@flax.struct.dataclass
class Batch:
    """The pictures that are drawn at the same time."""

    embeddings: Float[Array, "B E"]
    latents: Float[Array, "B h w C"]
    noise: Float[Array, "B E"]
    text_states: Float[Array, "B T D"]
    negative_text_states: Float[Array, "B T D"]
    negative_embeddings: Float[Array, "B E"] | None
    negative_noise: Float[Array, "B E"]


@functools.partial(jax.jit, static_argnums=(1, 2))
def seeded_noise(seeds: UInt32[Array, " B"], purpose: int, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Return standard normal noise in float32, each row from its own seed alone."""
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), purpose))(seeds)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def draw_batch(
    unclip: Unclip,
    params: dict,
    batch: Batch,
    steps: Steps,
    guidance_scale: Float[Array, ""],
    noise_level: Int[Array, ""],
    *,
    guided: bool,
    tile: int | None = None,
    on_step: Callable[[Int[Array, ""]], None] | None = None,
) -> UInt8[Array, "B H W 3"]:
    """Return the finished pictures.

    Args:
        guided: whether there is an unconditional or negative half at all, which doubles the work.
    """
    labels = unclip.class_labels(
        params, batch.embeddings, batch.noise, jnp.full(batch.embeddings.shape[:1], noise_level)
    )
    trajectory = unclip.draw_latents(
        params,
        batch.latents,
        Condition(batch.text_states, labels),
        steps,
        away_from=_negative(unclip, params, batch) if guided else None,
        guidance_scale=guidance_scale,
        on_step=on_step,
    )
    pixels = unclip.decode_latents(params, trajectory.final, tile=tile)
    return jnp.round(pixels * 255).astype(jnp.uint8)


def _negative(unclip: Unclip, params: dict, batch: Batch) -> Condition:
    """Return what to be guided away from: by default zeros in the whole class label, noise level included."""
    count = batch.embeddings.shape[0]
    if batch.negative_embeddings is None:
        labels = jnp.zeros((count, unclip.config.unet.class_width))
    else:
        # Level 0 whatever the pictures' own level is, as in the original.
        level = jnp.zeros((count,), jnp.int32)
        labels = unclip.class_labels(params, batch.negative_embeddings, batch.negative_noise, level)
    return Condition(batch.negative_text_states, labels)
