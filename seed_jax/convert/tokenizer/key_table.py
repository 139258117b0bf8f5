"""Official names of the tokenizer's tensors (spec A.8.1) beside ours, read in both directions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from seed_jax.convert.key_table import CONV, MATRIX, SAME, Entry, Layout, dense_entries, norm_entries
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.models.tokenizer.vit import BlockConfig

VIT = "visual_encoder."
QFORMER = "Qformer.bert."
REVERSE = "Reverse_Qformer.bert."


def key_table(config: SeedTokenizerConfig) -> list[Entry]:
    """Return the entry of every parameter of the tokenizer."""
    entries = [
        Entry("vit/cls_token", f"{VIT}cls_token", Layout(lead=2)),
        Entry("vit/pos_embed", f"{VIT}pos_embed", Layout(lead=1)),
        Entry("vit/patch_embed/kernel", f"{VIT}patch_embed.proj.weight", CONV),
        Entry("vit/patch_embed/bias", f"{VIT}patch_embed.proj.bias"),
        *blocks_entries("vit/blocks", f"{VIT}blocks", config.vit.blocks),
        *norm_entries("ln_vision", "ln_vision"),
        Entry("qformer/query_tokens", "query_tokens", Layout(lead=1)),
        *qformer_entries("qformer", QFORMER, config.qformer),
        *dense_entries("encode_task/fc1", "encode_task_layer.0"),
        *dense_entries("encode_task/fc2", "encode_task_layer.2"),
        Entry("codebook", "quantize.embedding.weight"),
        *dense_entries("decode_task/fc1", "decode_task_layer.0"),
        *dense_entries("decode_task/fc2", "decode_task_layer.2"),
        Entry("recon_pos_embed", "pos_embed", Layout(lead=1)),
        *blocks_entries("recon_blocks", "blocks", config.decoder),
        Entry("image_pos_embed", "pos_embed_image", Layout(lead=1)),
        *blocks_entries("image_blocks", "blocks_image", config.decoder),
        *dense_entries("image_proj", "distill_image_proj"),
    ]
    if config.head == "mlp":
        # Activations without weights stand between the layers of the official Sequential.
        indices = range(len(config.image_down))
        entries += [Entry(f"image_down_{i}/kernel", f"image_down.{2 * i}.weight", MATRIX) for i in indices]
    else:
        entries.append(Entry("reverse_qformer/query_tokens", "reverse_tokens", Layout(lead=1)))
        entries += qformer_entries("reverse_qformer", REVERSE, config.reverse)
    return entries


def buffers(config: SeedTokenizerConfig) -> dict[str, np.ndarray]:
    """Return the tensors of the official files that count positions and that nothing uses."""
    found = {f"{QFORMER}embeddings.position_ids": np.arange(config.qformer.max_positions)[None]}
    if config.head == "reverse_qformer":
        found[f"{REVERSE}embeddings.position_ids"] = np.arange(config.reverse.max_positions)[None]
    return found


def blocks_entries(path: str, name: str, config: BlockConfig) -> list[Entry]:
    """Return the entries of a stack of timm-style blocks."""
    path, name, layers = f"{path}/layers", f"{name}.{{}}", range(config.depth)
    entries = [
        *norm_entries(f"{path}/norm1", f"{name}.norm1", layers),
        *norm_entries(f"{path}/norm2", f"{name}.norm2", layers),
        *dense_entries(f"{path}/attn/proj", f"{name}.attn.proj", layers),
        *dense_entries(f"{path}/mlp/fc1", f"{name}.mlp.fc1", layers),
        *dense_entries(f"{path}/mlp/fc2", f"{name}.mlp.fc2", layers),
    ]
    if config.key_bias:
        return entries + dense_entries(f"{path}/attn/qkv", f"{name}.attn.qkv", layers)
    return [
        *entries,
        Entry(f"{path}/attn/qkv/kernel", f"{name}.attn.qkv.weight", MATRIX, layers),
        Entry(f"{path}/attn/q_bias", f"{name}.attn.q_bias", SAME, layers),
        Entry(f"{path}/attn/v_bias", f"{name}.attn.v_bias", SAME, layers),
    ]


def qformer_entries(path: str, name: str, config: QFormerConfig) -> list[Entry]:
    """Return the entries of a BERT with cross-attention, without its query tokens, which stand elsewhere."""
    entries = norm_entries(f"{path}/embed_norm", f"{name}embeddings.LayerNorm")
    if config.vocab_size:
        for kind in ("word", "position"):
            entries.append(Entry(f"{path}/{kind}_embeddings", f"{name}embeddings.{kind}_embeddings.weight"))
    for member in range(config.cross_attention_every):
        # Our layers are stacked group by group: member m of every group is one stack.
        layers = range(member, config.depth, config.cross_attention_every)
        ours, theirs = f"{path}/layers/layer_{member}", f"{name}encoder.layer.{{}}"
        entries += _attention(f"{ours}/self_attention", f"{theirs}.attention", layers)
        if member == 0:
            entries += _attention(f"{ours}/cross_attention", f"{theirs}.crossattention", layers)
        entries += _feed_forward(f"{ours}/query_ffn", f"{theirs}.{{}}_query", layers)
        if config.vocab_size:
            entries += _feed_forward(f"{ours}/text_ffn", f"{theirs}.{{}}", layers)
    return entries


def _attention(path: str, name: str, layers: Sequence[int]) -> list[Entry]:
    entries = [
        e for part in ("query", "key", "value") for e in dense_entries(f"{path}/{part}", f"{name}.self.{part}", layers)
    ]
    entries += dense_entries(f"{path}/out", f"{name}.output.dense", layers)
    return entries + norm_entries(f"{path}/norm", f"{name}.output.LayerNorm", layers)


def _feed_forward(path: str, name: str, layers: Sequence[int]) -> list[Entry]:
    widen, narrow = (name.format("{}", part) for part in ("intermediate", "output"))
    return [
        *dense_entries(f"{path}/mlp/fc1", f"{widen}.dense", layers),
        *dense_entries(f"{path}/mlp/fc2", f"{narrow}.dense", layers),
        *norm_entries(f"{path}/norm", f"{narrow}.LayerNorm", layers),
    ]


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
