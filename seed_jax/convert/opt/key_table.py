"""The key table of OPT: Hugging Face tensor names and our parameter paths. The head is the embedding table."""

from seed_jax import sharding
from seed_jax.convert.key_table import LINEAR, Entry, PaddedVocabulary, dense_entries, norm_entries
from seed_jax.models import language_models
from seed_jax.models.opt.config import OptConfig
from seed_jax.precision import Precision
from seed_jax.typing import Tree

DECODER = "model.decoder."
TIED_HEAD = "lm_head.weight"  # in some files a second copy of the embedding table
EMBEDDING = f"{DECODER}embed_tokens.weight"
# The linear layers of a block; names and paths are the same.
PROJECTIONS = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "fc1", "fc2")
NORMS = ("self_attn_layer_norm", "final_layer_norm")


def key_table(config: OptConfig) -> list[Entry]:
    """Return an entry for every parameter of an OPT."""
    layers = range(config.num_layers)
    vocabulary = PaddedVocabulary(size=config.vocab_size, padded=config.padded_vocab_size)
    entries = [
        Entry("embed_tokens/embedding", EMBEDDING, vocabulary),
        Entry("embed_positions/embedding", f"{DECODER}embed_positions.weight"),
    ]
    if config.word_embed_size != config.hidden_size:
        entries += [
            Entry(f"{name}/kernel", f"{DECODER}{name}.weight", LINEAR) for name in ("project_in", "project_out")
        ]
    if config.final_norm:
        entries += norm_entries("final_layer_norm", f"{DECODER}final_layer_norm")
    for name in PROJECTIONS:
        entries += dense_entries(f"layers/{name.replace('.', '/')}", f"{DECODER}layers.{{}}.{name}", layers)
    for name in NORMS:
        entries += norm_entries(f"layers/{name}", f"{DECODER}layers.{{}}.{name}", layers)
    return entries


CODE_PROJECTION = "code_projection.safetensors"


def code_projection(config: OptConfig) -> tuple[str, list[Entry]] | None:
    """Return the file that holds SEED-OPT's code vectors and their projection, and its entries; None for an OPT."""
    if not config.num_codes:
        return None
    return CODE_PROJECTION, [Entry("code_vectors", "code_vectors"), *dense_entries("code_proj", "code_proj")]


def abstract_params(config: OptConfig, dtype: str = "float32") -> Tree:
    """Return the parameters of an OPT as abstract arrays."""
    return sharding.unbox(language_models.abstract_params(config, Precision(params=dtype)))
