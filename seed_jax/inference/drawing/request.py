"""Drawing options and requests, validated before anything is computed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt32

from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import MAX_SEED
from seed_jax.models.diffusion import SAMPLERS, StableDiffusionConfig, UnclipConfig

DecoderConfig = UnclipConfig | StableDiffusionConfig


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """Options of the diffusion; the defaults are the original's (spec B.1, G).

    Attributes:
        sampler: "pndm", "ddim" or "dpmpp" (good from 12 steps on); None uses the checkpoint's.
        steps: sampler steps; None: unCLIP's 20, Stable Diffusion's 50.
        guidance_scale: classifier-free guidance; up to 1 disables it, which halves the time; None: unCLIP's 10, Stable
            Diffusion's 7.5.
        noise_level: noise on unCLIP's image embedding, 0 (almost none) to 999.
        tile: side in latents of the tiles in which the autoencoder decodes, to save memory; None decodes at once.
    """

    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    noise_level: int = 0
    tile: int | None = None


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """One entry per image; an array that was given once is broadcast."""

    embeddings: Float[np.ndarray, "B ..."]
    seeds: UInt32[np.ndarray, " B"]
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    negative_embeddings: Float[np.ndarray, "B ..."] | None
    latents: Float[np.ndarray, "B h w C"] | None
    noise: Float[np.ndarray, "B E"] | None
    negative_noise: Float[np.ndarray, "B E"] | None

    def __len__(self) -> int:
        return len(self.embeddings)


def build_request(
    config: DecoderConfig,
    embeddings: Any,
    seeds: Sequence[int],
    *,
    prompts: str | Sequence[str] = "",
    negative_prompts: str | Sequence[str] = "",
    negative_embeddings: Any = None,
    latents: Any = None,
    noise: Any = None,
    negative_noise: Any = None,
) -> DrawRequest:
    """Validate the arguments of `Drawer.draw` and broadcast them to one entry per image.

    Raises:
        UserError: a shape, a seed or a value is wrong.
    """
    expected, side = config.embedding_shape, config.unet.sample_size
    shape = np.shape(embeddings)
    count = shape[0] if len(shape) == 1 + len(expected) else 0
    if count == 0:
        wanted = ", ".join(map(str, expected))
        raise UserError(
            f"The generation embeddings have the shape {shape}, expected (B, {wanted}) with B > 0: use the image "
            "tokenizer that the decoder was trained for."
        )
    if isinstance(config, StableDiffusionConfig) and (prompts not in ("", ()) or noise is not None):
        raise UserError(
            "Stable Diffusion takes generation embeddings in place of a prompt: give embeddings or a prompt "
            "(`Drawer.draw_prompts`), and no noise on embeddings."
        )
    latent_shape = (side, side, config.unet.in_channels)
    return DrawRequest(
        embeddings=_broadcast("generation embeddings", embeddings, count, expected),
        seeds=_seeds(seeds, count),
        prompts=_texts("prompts", prompts, count),
        negative_prompts=_texts("negative prompts", negative_prompts, count),
        negative_embeddings=_optional("negative embeddings", negative_embeddings, count, expected),
        latents=_optional("latents", latents, count, latent_shape),
        noise=_optional("noise", noise, count, expected),
        negative_noise=_optional("negative noise", negative_noise, count, expected),
    )


def resolve_options(config: DecoderConfig, options: DrawOptions) -> DrawOptions:
    """Return the options with the decoder's own defaults filled in.

    Raises:
        UserError: an option is out of range (the number of steps is validated with the sampler's table).
    """
    if options.steps is None:
        options = dataclasses.replace(options, steps=config.default_steps)
    if options.guidance_scale is None:
        options = dataclasses.replace(options, guidance_scale=config.default_guidance_scale)
    _check_options(config, options)
    return options


def _check_options(config: DecoderConfig, options: DrawOptions) -> None:
    levels = config.embedding_noise.num_train_timesteps if isinstance(config, UnclipConfig) else 1
    assert options.guidance_scale is not None
    if options.sampler is not None and options.sampler not in SAMPLERS:
        raise UserError(f"Unknown sampler {options.sampler!r}: expected one of {', '.join(SAMPLERS)}.")
    if not math.isfinite(options.guidance_scale) or options.guidance_scale < 0:
        raise UserError(f"The guidance scale is {options.guidance_scale}, expected a finite number of at least 0.")
    if not 0 <= options.noise_level < levels:
        limit = "0, since this decoder's embeddings have no noise" if levels == 1 else f"0 to {levels - 1}"
        raise UserError(f"The noise level is {options.noise_level}, expected {limit}.")
    if options.tile is not None and options.tile < 1:
        raise UserError(f"The side of a tile is {options.tile}, expected at least 1.")


def _optional(name: str, value: Any, count: int, shape: tuple[int, ...]) -> np.ndarray | None:
    return None if value is None else _broadcast(name, value, count, shape)


def _broadcast(name: str, value: Any, count: int, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value, np.float32)
    if array.shape[1:] != shape and name.endswith("embeddings") and array.ndim == 1 + len(shape):
        raise UserError(
            f"The {name} have width {array.shape[-1]}, but this decoder expects width {shape[-1]}: use the image "
            "tokenizer that the decoder was trained for."
        )
    if array.shape not in ((count, *shape), (1, *shape)):
        raise UserError(f"The {name} have the shape {array.shape}, expected {(count, *shape)} or {(1, *shape)}.")
    invalid = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    if len(invalid):
        raise UserError(f"Entry {invalid[0]} of the {name} contains NaN or infinity: check the model that made it.")
    return np.broadcast_to(array, (count, *shape))


def _seeds(seeds: Sequence[int], count: int) -> UInt32[np.ndarray, " B"]:
    array = np.asarray(seeds)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"The seeds are {array.tolist()!r}, expected {count} integers, one per image.")
    if array.min() < 0 or array.max() > MAX_SEED:
        raise UserError(f"The seeds are {array.min()} to {array.max()}, expected 0 to {MAX_SEED}.")
    return array.astype(np.uint32)


def _texts(name: str, texts: str | Sequence[str], count: int) -> tuple[str, ...]:
    texts = (texts,) * count if isinstance(texts, str) else tuple(texts)
    if len(texts) != count:
        raise UserError(f"There are {len(texts)} {name} for {count} images: give one for all, or one per image.")
    return texts
