"""Which Hugging Face tensor is which of our parameters: one table, read in both directions.

A block's tensors are one a layer there and stacked here; the vocabulary ends where it ends there and is filled up with
zeros here.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from seed_jax.convert.key_table import MATRIX, SAME, Entry, Layout
from seed_jax.convert.tensors import Shape
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.precision import Precision

# Our path below `layers` -> Hugging Face name below `model.layers.N`, both without the leaf.
PROJECTIONS = {
    f"{group}/{name}_proj": f"{group}.{name}_proj"
    for group, names in {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}.items()
    for name in names
}
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclasses.dataclass(frozen=True)
class Vocabulary(Layout):
    """A matrix with a row a token: `size` rows there, filled up to `padded` here."""

    size: int = 0
    padded: int = 0

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        return super().to_ours(np.pad(theirs, ((0, self.padded - self.size), (0, 0))))

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return super().to_theirs(ours)[: self.size]

    def their_shape(self, ours: Shape) -> Shape:
        return (self.size, *super().their_shape(ours)[1:])


def key_table(config: LlamaConfig) -> list[Entry]:
    """Return an entry for every parameter of a LLaMA of these sizes."""
    layers, rows = range(config.num_layers), {"size": config.vocab_size, "padded": config.padded_vocab_size}
    top = [
        Entry("embed_tokens/embedding", "model.embed_tokens.weight", Vocabulary(**rows)),
        Entry("norm/scale", "model.norm.weight", SAME),
        Entry("lm_head/kernel", "lm_head.weight", Vocabulary(axes=(1, 0), **rows)),
    ]
    norms = [Entry(f"layers/{name}/scale", f"model.layers.{{}}.{name}.weight", SAME, layers) for name in NORMS]
    projections = [
        Entry(f"layers/{ours}/kernel", f"model.layers.{{}}.{theirs}.weight", MATRIX, layers)
        for ours, theirs in PROJECTIONS.items()
    ]
    return top + norms + projections


def rotary_buffers(config: LlamaConfig) -> list[str]:
    """Return names of buffers that older releases of transformers stored; they follow from `rope_theta`."""
    return [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.num_layers)]


def abstract_params(config: LlamaConfig, dtype: str = "float32") -> dict[str, Any]:
    """Return the parameters as shapes."""
    init = Llama(config, Precision(params=dtype)).init
    return meta.unbox(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
