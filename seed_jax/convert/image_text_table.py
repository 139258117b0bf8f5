"""Official names of what is trained beside the image tokenizer: stage I's model and the text branch (spec A.8.2)."""

import dataclasses

import numpy as np

from seed_jax.convert.table import Entry, Layout, dense_entries
from seed_jax.convert.tokenizer_table import blocks_entries, key_table, qformer_entries
from seed_jax.models.image_text import ImageTextConfig
from seed_jax.models.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.text_branch import TextBranchConfig
from seed_jax.models.vit import BlockConfig

SHARED = ("vit", "ln_vision", "qformer")  # of the image-text model and the image tokenizer
TEXT_REVERSE = "Reverse_Qformer_text.bert."


def image_text_table(config: ImageTextConfig) -> list[Entry]:
    """Return the entry of every parameter of the image-text model."""
    width = config.qformer.width
    decoder = BlockConfig(width=width, heads=config.qformer.heads)
    tokenizer = SeedTokenizerConfig(vit=config.vit, qformer=config.qformer, decoder=decoder)
    shared = [entry for entry in key_table(tokenizer) if entry.path.split("/")[0] in SHARED]
    return shared + retrieval_table()


def retrieval_table() -> list[Entry]:
    """Return the entries of what turns embeddings into the vectors that are compared."""
    return [
        *dense_entries("vision_proj", "vision_proj"),
        *dense_entries("text_proj", "text_proj"),
        Entry("temperature", "temp"),
    ]


def text_branch_table(config: TextBranchConfig) -> list[Entry]:
    """Return the entry of every parameter of the branch that estimates text states."""
    return [
        Entry("pos_embed", "pos_embed_text", Layout(lead=1)),
        *blocks_entries("blocks", "blocks_text", config.decoder),
        Entry("reverse_qformer/query_tokens", "reverse_tokens_text", Layout(lead=1)),
        *qformer_entries("reverse_qformer", TEXT_REVERSE, config.reverse),
        *dense_entries("proj", "distill_text_proj"),
    ]


def text_branch_buffers(config: TextBranchConfig) -> dict[str, np.ndarray]:
    """Return the tensor of the official file that counts positions and that nothing uses."""
    return {f"{TEXT_REVERSE}embeddings.position_ids": np.arange(config.reverse.max_positions)[None]}


def below(path: str, entries: list[Entry]) -> list[Entry]:
    """Return the entries of parameters that lie below `path` in a larger tree."""
    return [dataclasses.replace(entry, path=f"{path}/{entry.path}") for entry in entries]
