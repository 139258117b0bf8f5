"""Weights and recorded outputs of the original tokenizer, shared by several tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.key_table import assemble
from seed_jax.convert.tensors import open_tensors
from seed_jax.convert.tokenizer.official_import import ImportedTokenizer, import_tokenizer, open_seed1
from tests.support import golden, philox

HEADS = {"vit_heads": 4, "qformer_heads": 4, "decoder_heads": 4}


@functools.cache
def imported(variant: str) -> ImportedTokenizer:
    """Return the tiny tokenizer of goldens/tokenizer_tiny ("release" or "qformer_image")."""
    return import_tokenizer(golden.path(f"tokenizer_tiny/{variant}.weights.safetensors"), **HEADS)


@functools.cache
def recorded(variant: str) -> dict[str, np.ndarray]:
    return golden.tensors(f"tokenizer_tiny/{variant}.outputs.safetensors")


def image() -> jax.Array:
    return jnp.asarray(golden.tensors("tokenizer_tiny/inputs.safetensors")["image"].transpose(0, 2, 3, 1))


def read(name: str, table, shapes) -> dict:
    """Read part of a golden weights file through a key table."""
    return assemble(table, open_tensors(golden.path(name)), shapes)


def random_like(shapes):
    """Return random parameters that preserve the scale of activations; no bias is zero, no scale one."""

    def fill(path, leaf):
        noise = philox.normal(7, jax.tree_util.keystr(path), leaf.shape)
        if path[-1].key == "kernel":
            noise = noise / np.prod(leaf.shape[:-1] if leaf.ndim == 4 else leaf.shape[-2:-1]) ** 0.5
        elif path[-1].key == "scale":
            noise = 1 + 0.2 * noise
        elif path[-1].key.endswith("bias"):
            noise = 0.2 * noise
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


SEED1_FILES = tuple(f"seed1_tiny/{name}.safetensors" for name in ("causal_qformer", "seed_tokenizer", "eva_vit_g"))


@functools.cache
def imported_seed1() -> ImportedTokenizer:
    """Return the tiny SEED-1 tokenizer of goldens/seed1_tiny."""
    tokenizer = open_seed1(*map(golden.path, SEED1_FILES), **HEADS)
    return dataclasses.replace(tokenizer, params=materialize(tokenizer.params))


def seed1_image() -> jax.Array:
    return jnp.asarray(golden.tensors("seed1_tiny/inputs.safetensors")["image"].transpose(0, 2, 3, 1))
