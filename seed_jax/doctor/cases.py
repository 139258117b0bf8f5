"""The models of the self-test: tiny, with weights that are the same numbers on every machine, and recorded outputs.

`goldens.safetensors` holds what PyTorch computed from these weights: transformers' LLaMA, diffusers' UNet and
autoencoder, and `convert.tokenizer.torch_reference`, which is compared with the original code. `python -m
tests.doctor.record` writes it, and a test computes it again.
"""

import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from seed_jax.convert.diffusion import diffusers_import
from seed_jax.convert.llama import key_table as llama_table
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.tokenizer import seed_tokenizer
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.typing import Tree

GOLDENS = Path(__file__).with_name("goldens.safetensors")
VOCABULARY = Path(__file__).with_name("vocabulary")  # a text tokenizer of 700 pieces and 128 image codes
TOKENIZER = SeedTokenizerConfig.tiny()
DECODER = UnclipConfig.tiny(TOKENIZER.embedding_width)
LLAMA = LlamaConfig.tiny(830)
TIMESTEP = 501
NUM_GENERATED = 16
_SEED = 20


def tokenizer_params() -> Tree:
    return random_tree("tokenizer", seed_tokenizer.abstract_params(TOKENIZER))


def decoder_params() -> Tree:
    return random_tree("decoder", diffusers_import.abstract_params(DECODER))


def llama_params() -> Tree:
    return random_tree("llama", llama_table.abstract_params(LLAMA))


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    """Return the fixed inputs of all models, images and latents channels last."""
    unet, side = DECODER.unet, TOKENIZER.image_size
    return {
        "images": uniform("images", (2, side, side, 3)),
        "codes": _integers("codes", (2, TOKENIZER.codes_per_image), TOKENIZER.num_codes),
        "tokens": _integers("tokens", (1, 32), LLAMA.vocab_size),
        "latents": uniform("latents", (1, unet.sample_size, unet.sample_size, unet.in_channels)),
        "text_states": uniform("text_states", (1, DECODER.text.max_length, unet.text_width)),
        "class_labels": uniform("class_labels", (1, DECODER.class_width)),
    }


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    """Return the recorded outputs."""
    return load_file(GOLDENS)


def random_tree(purpose: str, shapes: Tree) -> Tree:
    """Fill a tree of abstract parameters so that the scale of activations is preserved; no bias is zero."""

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        noise = uniform(purpose + jax.tree_util.keystr(path), leaf.shape)
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim == 4 else leaf.shape[-2]
            return (noise / fan_in**0.5).astype(np.float32)
        if name in ("scale", "std"):
            return (1 + 0.2 * noise).astype(np.float32)
        return (0.2 * noise).astype(np.float32) if name.endswith(("bias", "mean")) else noise

    return jax.tree_util.tree_map_with_path(fill, shapes)


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers of mean zero and variance one, the same in every release of NumPy."""
    return ((_bits(name, shape) * 2.0**-23 - 1.0) * 3**0.5).astype(np.float32)


def _integers(name: str, shape: tuple[int, ...], limit: int) -> np.ndarray:
    return (_bits(name, shape) % limit).astype(np.int32)


def _bits(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return 24 random bits per value: raw output of the generator, which never changes."""
    generator = np.random.Philox(key=[_SEED, zlib.crc32(name.encode())])
    return (generator.random_raw(int(np.prod(shape))) >> np.uint64(40)).reshape(shape)
