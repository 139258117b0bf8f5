"""The tiny decoder of the goldens and its recorded inputs, for several tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.convert.diffusion.diffusers_import import ImportedUnclip, abstract_params, import_unclip
from seed_jax.models.clip.text import ClipTextConfig
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.models.diffusion.unclip_config import PromptTokens, UNetConfig, VAEConfig
from tests.support import golden

FOLDER = "unclip_tiny/diffusion_model"
# Two levels, one of them with attention: every kind of layer once.
SMALLEST = UnclipConfig(
    unet=UNetConfig(
        sample_size=8, block_channels=(8, 16), cross_attention=(True, False), num_heads=(2, 2), layers_per_block=1,
        text_width=16, class_width=64, norm_groups=4,
    ),
    vae=VAEConfig(sample_size=16, block_channels=(8, 8), layers_per_block=1, norm_groups=4),
    text=ClipTextConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, max_length=8
    ),
    prompt=PromptTokens(bos=18, eos=19),
)  # fmt: skip


@functools.cache
def imported() -> ImportedUnclip:
    return import_unclip(golden.path(FOLDER))


@functools.cache
def decoder() -> tuple[Unclip, dict]:
    """Return the decoder and its parameters on the device."""
    return Unclip(imported().config), jax.tree.map(jnp.asarray, imported().params)


def random_decoder(config: UnclipConfig, **options) -> tuple[Unclip, dict]:
    """Return a decoder with parameters that keep a signal's size, none of them zero or one."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise / np.prod(leaf.shape[:-1] if leaf.ndim == 4 else leaf.shape[-2:-1]) ** 0.5
        return 1 + 0.2 * noise if name in ("scale", "std") else 0.2 * noise

    params = jax.tree_util.tree_map_with_path(fill, abstract_params(config))
    return Unclip(config, **options), jax.tree.map(jnp.asarray, params)


@functools.cache
def tensors(name: str) -> dict[str, jax.Array]:
    """Return recorded numbers, pictures and latents channels last."""
    recorded = golden.tensors(f"unclip_tiny/{name}.safetensors")
    return {key: jnp.asarray(value if key == "image" else channels_last(value)) for key, value in recorded.items()}


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -3, -1) if x.ndim >= 4 else x


def error(ours, recorded) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(recorded)).max())
