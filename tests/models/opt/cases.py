"""The recorded tiny OPT."""

import functools

import jax
import jax.numpy as jnp

from seed_jax.convert.key_table import assemble
from seed_jax.convert.opt.key_table import abstract_params, key_table
from seed_jax.convert.tensors import open_tensors
from seed_jax.data.text.byte_pair import BytePairModel
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.models.opt.config import OptConfig
from tests.support import golden

GOLDEN = OptConfig(566, 32, 64, 3, 4, max_length=96)


@functools.cache
def golden_params() -> dict:
    tensors = open_tensors(golden.path("opt_tiny/model.safetensors"))
    return jax.tree.map(jnp.asarray, assemble(key_table(GOLDEN), tensors, abstract_params(GOLDEN)))


@functools.cache
def recorded() -> dict:
    return golden.tensors("opt_tiny/outputs.safetensors")


@functools.cache
def vocabulary() -> Vocabulary:
    """Return the recorded text tokenizer with the model's 64 image codes, <img> 564 and </img> 565."""
    names = [*(f"<img_{code:05d}>" for code in range(64)), "<img>", "</img>"]
    model = BytePairModel.load(golden.path("opt_tiny/tokenizer"))
    return Vocabulary(model, {name: 500 + index for index, name in enumerate(names)})
