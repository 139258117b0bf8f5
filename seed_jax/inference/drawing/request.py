"""What a drawing is asked for, checked before anything is computed."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt32

from seed_jax.errors import UserError
from seed_jax.models.diffusion import SAMPLERS, UnclipConfig

MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """How to draw; the defaults are the original's (spec B.1).

    Attributes:
        sampler: pndm, ddim or dpmpp (good from 12 steps); None is what the checkpoint names.
        guidance_scale: up to 1 draws without guidance, in half the time.
        noise_level: of the image embedding, 0 (almost none) to 999.
        tile: side in latents of the tiles in which the autoencoder decodes, to save memory; None decodes at once.
    """

    sampler: str | None = None
    steps: int = 20
    guidance_scale: float = 10.0
    noise_level: int = 0
    tile: int | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """A row a picture; an array that was given once stands in every row."""

    embeddings: Float[np.ndarray, "B E"]
    seeds: UInt32[np.ndarray, " B"]
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    negative_embeddings: Float[np.ndarray, "B E"] | None
    latents: Float[np.ndarray, "B h w C"] | None
    noise: Float[np.ndarray, "B E"] | None
    negative_noise: Float[np.ndarray, "B E"] | None

    def __len__(self) -> int:
        return len(self.embeddings)


def make_request(
    config: UnclipConfig,
    embeddings,
    seeds: Sequence[int],
    *,
    prompts: str | Sequence[str] = "",
    negative_prompts: str | Sequence[str] = "",
    negative_embeddings=None,
    latents=None,
    noise=None,
    negative_noise=None,
) -> Request:
    """Check what was given and bring it into one form; the parameters are those of `Drawer.draw`."""
    width, side = config.embedding_width, config.unet.sample_size
    count = np.shape(embeddings)[0] if np.ndim(embeddings) == 2 else 0
    if count == 0:
        raise UserError(
            f"The generation embeddings have the shape {np.shape(embeddings)}, expected (B, {width}), B > 0."
        )
    latent_shape = (side, side, config.unet.in_channels)
    return Request(
        embeddings=_rows("generation embeddings", embeddings, count, (width,)),
        seeds=_seeds(seeds, count),
        prompts=_texts("prompts", prompts, count),
        negative_prompts=_texts("negative prompts", negative_prompts, count),
        negative_embeddings=_rows("negative embeddings", negative_embeddings, count, (width,)),
        latents=_rows("latents", latents, count, latent_shape),
        noise=_rows("noise", noise, count, (width,)),
        negative_noise=_rows("negative noise", negative_noise, count, (width,)),
    )


def check_options(config: UnclipConfig, options: DrawOptions) -> None:
    """Refuse options that cannot be followed (the number of steps is checked by the sampler's plan)."""
    levels = config.embedding_noise.num_train_timesteps
    if options.sampler is not None and options.sampler not in SAMPLERS:
        raise UserError(f"Unknown sampler {options.sampler!r}: expected one of {', '.join(SAMPLERS)}.")
    if not math.isfinite(options.guidance_scale) or options.guidance_scale < 0:
        raise UserError(f"The guidance scale is {options.guidance_scale}: expected a number from 0 on.")
    if not 0 <= options.noise_level < levels:
        raise UserError(f"The noise level is {options.noise_level}: expected 0 to {levels - 1}.")
    if options.tile is not None and options.tile < 1:
        raise UserError(f"The tile side is {options.tile}: expected at least 1.")


def _rows(what: str, value, count: int, shape: tuple[int, ...]) -> np.ndarray | None:
    if value is None:
        return None
    array = np.asarray(value, np.float32)
    if array.shape[1:] != shape and what.endswith("embeddings") and array.ndim == 2:
        raise UserError(
            f"The {what} are {array.shape[-1]} wide, but this decoder expects {shape[0]}: the tokenizer and the "
            "decoder do not belong together."
        )
    if array.shape not in ((count, *shape), (1, *shape)):
        raise UserError(f"The {what} have the shape {array.shape}, expected {(count, *shape)} or {(1, *shape)}.")
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    if len(bad):
        raise UserError(f"Row {bad[0]} of the {what} holds NaN or infinity: check the model that made them.")
    return np.broadcast_to(array, (count, *shape))


def _seeds(seeds: Sequence[int], count: int) -> UInt32[np.ndarray, " B"]:
    seeds = np.asarray(seeds)
    if seeds.shape != (count,) or not np.issubdtype(seeds.dtype, np.integer):
        raise UserError(f"Expected {count} whole numbers as seeds, one a picture, found {seeds.tolist()!r}.")
    if seeds.min() < 0 or seeds.max() > MAX_SEED:
        raise UserError(f"Seeds run from 0 to {MAX_SEED}, found {seeds.min()} to {seeds.max()}.")
    return seeds.astype(np.uint32)


def _texts(what: str, texts: str | Sequence[str], count: int) -> tuple[str, ...]:
    texts = (texts,) * count if isinstance(texts, str) else tuple(texts)
    if len(texts) != count:
        raise UserError(f"{len(texts)} {what} for {count} pictures: give one for all or one each.")
    return texts
