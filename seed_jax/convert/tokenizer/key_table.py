"""Key tables of the image tokenizer: official tensor names (spec A.8.1) and our parameter paths."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from seed_jax.convert.key_table import CONV, IDENTITY, LINEAR, Entry, Layout, dense_entries, norm_entries
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.models.tokenizer.vit import BlockConfig

VIT = "visual_encoder."
QFORMER = "Qformer.bert."
REVERSE = "Reverse_Qformer.bert."


def key_table(config: SeedTokenizerConfig) -> list[Entry]:
    """Return an entry for every parameter of the tokenizer."""
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
    ]
    if config.reconstruction:
        entries.append(Entry("recon_pos_embed", "pos_embed", Layout(lead=1)))
        entries += blocks_entries("recon_blocks", "blocks", config.decoder)
    if config.predicts_text:
        table = text_branch_table(config.text_decoder, reverse=REVERSE, queries="reverse_tokens")
        return entries + with_path_prefix("text_decoder", table)
    entries += [
        Entry("image_pos_embed", "pos_embed_image", Layout(lead=1)),
        *blocks_entries("image_blocks", "blocks_image", config.decoder),
        *dense_entries("image_proj", "distill_image_proj"),
    ]
    if config.head == "mlp":
        # The official Sequential has activations without weights between its layers.
        indices = range(len(config.image_down))
        entries += [Entry(f"image_down_{i}/kernel", f"image_down.{2 * i}.weight", LINEAR) for i in indices]
    if config.reverse is not None:
        entries.append(Entry("reverse_qformer/query_tokens", "reverse_tokens", Layout(lead=1)))
        entries += qformer_entries("reverse_qformer", REVERSE, config.reverse)
    return entries


def position_buffers(config: SeedTokenizerConfig) -> dict[str, np.ndarray]:
    """Return the constant position indices that the official files hold, unused, as name -> array."""
    buffers = {f"{QFORMER}embeddings.position_ids": np.arange(config.qformer.max_positions)[None]}
    if config.reverse is not None:
        buffers[f"{REVERSE}embeddings.position_ids"] = np.arange(config.reverse.max_positions)[None]
    return buffers


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
        Entry(f"{path}/attn/qkv/kernel", f"{name}.attn.qkv.weight", LINEAR, layers),
        Entry(f"{path}/attn/q_bias", f"{name}.attn.q_bias", IDENTITY, layers),
        Entry(f"{path}/attn/v_bias", f"{name}.attn.v_bias", IDENTITY, layers),
    ]


def qformer_entries(path: str, name: str, config: QFormerConfig) -> list[Entry]:
    """Return the entries of a BERT with cross-attention, without its query tokens, which are stored elsewhere."""
    entries = norm_entries(f"{path}/embed_norm", f"{name}embeddings.LayerNorm")
    if config.vocab_size:
        for kind in ("word", "position"):
            entries.append(Entry(f"{path}/{kind}_embeddings", f"{name}embeddings.{kind}_embeddings.weight"))
    for member in range(config.cross_attention_every):
        # Our layers are scanned in groups: member m of every group is one stack.
        layers = range(member, config.depth, config.cross_attention_every)
        layer_path, layer_name = f"{path}/layers/layer_{member}", f"{name}encoder.layer.{{}}"
        entries += _attention(f"{layer_path}/self_attention", f"{layer_name}.attention", layers)
        if member == 0:
            entries += _attention(f"{layer_path}/cross_attention", f"{layer_name}.crossattention", layers)
        entries += _feed_forward(f"{layer_path}/query_ffn", f"{layer_name}.{{}}_query", layers)
        if config.vocab_size:
            entries += _feed_forward(f"{layer_path}/text_ffn", f"{layer_name}.{{}}", layers)
    return entries


def _attention(path: str, name: str, layers: Sequence[int]) -> list[Entry]:
    entries = [
        e for part in ("query", "key", "value") for e in dense_entries(f"{path}/{part}", f"{name}.self.{part}", layers)
    ]
    entries += dense_entries(f"{path}/out", f"{name}.output.dense", layers)
    return entries + norm_entries(f"{path}/norm", f"{name}.output.LayerNorm", layers)


def _feed_forward(path: str, name: str, layers: Sequence[int]) -> list[Entry]:
    intermediate, output = name.format("{}", "intermediate"), name.format("{}", "output")
    return [
        *dense_entries(f"{path}/mlp/fc1", f"{intermediate}.dense", layers),
        *dense_entries(f"{path}/mlp/fc2", f"{output}.dense", layers),
        *norm_entries(f"{path}/norm", f"{output}.LayerNorm", layers),
    ]


SHARED_MODULES = ("vit", "ln_vision", "qformer")  # by the image-text model and the image tokenizer
TEXT_REVERSE = "Reverse_Qformer_text.bert."


def image_text_table(config: ImageTextConfig) -> list[Entry]:
    """Return an entry for every parameter of the image-text model (stage I)."""
    width = config.qformer.width
    decoder = BlockConfig(width=width, heads=config.qformer.heads)
    tokenizer = SeedTokenizerConfig(vit=config.vit, qformer=config.qformer, decoder=decoder)
    shared = [entry for entry in key_table(tokenizer) if entry.path.split("/")[0] in SHARED_MODULES]
    return shared + retrieval_table()


def retrieval_table() -> list[Entry]:
    """Return the entries of the projections and temperature of image-text retrieval."""
    return [
        *dense_entries("vision_proj", "vision_proj"),
        *dense_entries("text_proj", "text_proj"),
        Entry("temperature", "temp"),
    ]


def text_branch_table(
    config: TextBranchConfig, *, reverse: str = TEXT_REVERSE, queries: str = "reverse_tokens_text"
) -> list[Entry]:
    """Return an entry for every parameter of the branch that predicts Stable Diffusion's text states.

    Args:
        config: sizes of the branch.
        reverse: prefix of the names of the Reverse Q-Former; SEED-1 names it without `_text`.
        queries: name of its query tokens.
    """
    return [
        Entry("pos_embed", "pos_embed_text", Layout(lead=1)),
        *blocks_entries("blocks", "blocks_text", config.decoder),
        Entry("reverse_qformer/query_tokens", queries, Layout(lead=1)),
        *qformer_entries("reverse_qformer", reverse, config.reverse),
        *dense_entries("proj", "distill_text_proj"),
    ]


def with_path_prefix(path: str, entries: list[Entry]) -> list[Entry]:
    """Return the entries of a subtree, for use in the larger tree that has it at `path`."""
    return [dataclasses.replace(entry, path=f"{path}/{entry.path}") for entry in entries]
