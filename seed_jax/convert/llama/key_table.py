"""The key table of LLaMA: Hugging Face tensor names and our parameter paths.

Hugging Face stores one tensor per layer, we stack them; the vocabulary's padding rows exist only here.
"""

from seed_jax import sharding
from seed_jax.convert.key_table import IDENTITY, LINEAR, Entry, PaddedVocabulary
from seed_jax.models import language_models
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.precision import Precision
from seed_jax.typing import Tree

# Our path below `layers` -> Hugging Face name below `model.layers.N`, both without the leaf.
PROJECTIONS = {
    f"{group}/{name}_proj": f"{group}.{name}_proj"
    for group, names in {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}.items()
    for name in names
}
NORMS = ("input_layernorm", "post_attention_layernorm")


def key_table(config: LlamaConfig) -> list[Entry]:
    """Return an entry for every parameter of a LLaMA."""
    layers = range(config.num_layers)
    size, padded = config.vocab_size, config.padded_vocab_size
    top = [
        Entry("embed_tokens/embedding", "model.embed_tokens.weight", PaddedVocabulary(size=size, padded=padded)),
        Entry("norm/scale", "model.norm.weight", IDENTITY),
        Entry("lm_head/kernel", "lm_head.weight", PaddedVocabulary(axes=(1, 0), size=size, padded=padded)),
    ]
    norms = [Entry(f"layers/{name}/scale", f"model.layers.{{}}.{name}.weight", IDENTITY, layers) for name in NORMS]
    projections = [
        Entry(f"layers/{path}/kernel", f"model.layers.{{}}.{name}.weight", LINEAR, layers)
        for path, name in PROJECTIONS.items()
    ]
    return top + norms + projections


def rotary_buffers(config: LlamaConfig) -> list[str]:
    """Return the names of buffers that older releases of transformers stored; they follow from `rope_theta`."""
    return [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.num_layers)]


def abstract_params(config: LlamaConfig, dtype: str = "float32") -> Tree:
    """Return the parameters of a LLaMA as abstract arrays."""
    return sharding.unbox(language_models.abstract_params(config, Precision(params=dtype)))
