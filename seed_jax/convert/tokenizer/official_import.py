"""Read the tokenizer from the original's files: `seed_quantizer.pt` and `eva_vit_g.pth` (spec A.8)."""

import dataclasses
import logging
import math
import re
from pathlib import Path
from typing import Any

from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert import key_table as tables
from seed_jax.convert.tensors import Shape, Tensors, check, listed, open_tensors
from seed_jax.convert.tokenizer.key_table import QFORMER, REVERSE, VIT, buffers, key_table
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.models.tokenizer.vit import BlockConfig, VitConfig

EVA_G_BLOCKS = 40  # of which SEED uses 39

# What the released file holds besides the image tokenizer (spec A.8.2): the stage I text tower and projections, the
# branch that predicts Stable Diffusion's text states, and buffers of its frozen CLIP teachers.
EXTRAS = re.compile(
    r"temp|(vision|text)_proj\.(weight|bias)|itm_head\.(weight|bias)"
    r"|Qformer\.cls\..*|Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*"
    r"|pos_embed_text|blocks_text\..*|Reverse_Qformer_text\..*|reverse_tokens_text|distill_text_proj\.(weight|bias)"
    r"|.*\bposition_ids"
)
_BUFFERS = "position_ids"  # of the extras too; they only count
# The tensors that sizes are read off.
_PROBES = {
    "patch": f"{VIT}patch_embed.proj.weight",
    "places": f"{VIT}pos_embed",
    "vit_mlp": f"{VIT}blocks.0.mlp.fc1.weight",
    "queries": "query_tokens",
    "memory": f"{QFORMER}encoder.layer.0.crossattention.self.key.weight",
    "mlp": f"{QFORMER}encoder.layer.0.intermediate_query.dense.weight",
    "codebook": "quantize.embedding.weight",
    "decoder_mlp": "blocks_image.0.mlp.fc1.weight",
    "embedding": "distill_image_proj.weight",
}


@dataclasses.dataclass(frozen=True)
class ImportedTokenizer:
    """A tokenizer in the original's files; `params` are arrays, NumPy's or lazy ones."""

    config: SeedTokenizerConfig
    params: dict[str, Any]
    extras: Tensors  # known tensors that the image tokenizer does not use
    unknown: list[str]  # names that nobody expects
    tensors: Tensors  # everything, the image encoder's with their prefix


def import_tokenizer(quantizer: str | Path, vit: str | Path | None = None, **options: Any) -> ImportedTokenizer:
    """Read the original's weights into NumPy arrays; see `open_tokenizer`."""
    found = open_tokenizer(quantizer, vit, **options)
    return dataclasses.replace(found, params=materialize(found.params))


def open_tokenizer(
    quantizer: str | Path,
    vit: str | Path | None = None,
    *,
    vit_heads: int = 16,
    qformer_heads: int = 12,
    decoder_heads: int = 12,
    text: bool = False,
) -> ImportedTokenizer:
    """Check every tensor's name and shape; sizes come from the shapes, weights are read (as float32) when asked for.

    Args:
        quantizer: `seed_quantizer.pt`, or a safetensors file with the same names.
        vit: `eva_vit_g.pth`, whose names have no prefix; not needed where the first file holds `visual_encoder.*` too.
        vit_heads: number of heads, which no shape tells; likewise `qformer_heads` (both Q-Formers), `decoder_heads`.
        text: make the text side part of the Q-Former instead of setting it aside.
    """
    tensors = _open(quantizer, vit)
    config = infer_config(tensors, vit_heads, qformer_heads, decoder_heads, text=text)
    table, abstract = key_table(config), abstract_params(config)
    expected = tables.expected_shapes(table, abstract)
    spare = _spare_block(config, tensors)
    extras = [name for name in tensors if name not in expected and EXTRAS.fullmatch(name)]
    unknown = check(expected, tensors, ignore=[*extras, *spare, *buffers(config)], allow_unexpected=True)
    if unknown:
        logging.warning("Ignored %d tensors that nobody expects: %s", len(unknown), listed(unknown))
    kept = Tensors({name: tensors[name] for name in extras if not name.endswith(_BUFFERS)}, tensors.where)
    return ImportedTokenizer(config, tables.assemble_lazily(table, tensors, abstract), kept, unknown, tensors)


def infer_config(
    tensors: Tensors, vit_heads: int, qformer_heads: int, decoder_heads: int, *, text: bool = False
) -> SeedTokenizerConfig:
    """Read the sizes off the shapes of tensors that carry official names."""
    absent = [name for name in _PROBES.values() if name not in tensors]
    if absent:
        raise UserError(f"{tensors.where} is not a SEED tokenizer: it lacks {listed(absent)}, among others.")
    shape = {key: tensors[name].shape for key, name in _PROBES.items()}
    width, _, patch, _ = shape["patch"]
    decoder = BlockConfig(
        width=shape["queries"][-1],
        depth=len(_layers(tensors, "blocks_image.", ".attn.qkv.weight")),
        heads=decoder_heads,
        mlp_width=shape["decoder_mlp"][0],
        key_bias=True,
    )
    blocks = BlockConfig(width, _vit_depth(tensors), vit_heads, shape["vit_mlp"][0])
    has_reverse = "reverse_tokens" in tensors
    reverse = _qformer_config(tensors, REVERSE, qformer_heads, shape, 1) if has_reverse else None
    downs = [tensors[name].shape[0] for i in range(0, 99, 2) if (name := f"image_down.{i}.weight") in tensors]
    return SeedTokenizerConfig(
        vit=VitConfig(math.isqrt(shape["places"][1] - 1) * patch, patch, blocks),
        qformer=_qformer_config(tensors, QFORMER, qformer_heads, shape, shape["queries"][1], text=text),
        num_codes=shape["codebook"][0],
        code_width=shape["codebook"][1],
        decoder=decoder,
        head="reverse_qformer" if has_reverse else "mlp",
        image_down=tuple(downs),
        reverse=reverse,
        embedding_width=shape["embedding"][0],
    )


def _open(quantizer: str | Path, vit: str | Path | None) -> Tensors:
    tensors = open_tensors(quantizer)
    if vit is not None:
        return with_vit(tensors, open_tensors(vit))
    if not any(name.startswith(VIT) for name in tensors):
        raise UserError(f"{quantizer} does not hold the image encoder: give its file (eva_vit_g.pth) with --vit.")
    return tensors


def with_vit(tensors: Tensors, encoder: Tensors | None = None) -> Tensors:
    """Return the tensors of both files, the image encoder's with their prefix, which its own file lacks."""
    if encoder is None:
        return tensors
    prefixed = any(name.startswith(VIT) for name in encoder)
    return tensors.merged(encoder if prefixed else encoder.with_prefix(VIT))


def _qformer_config(tensors, prefix: str, heads: int, shape: dict[str, Shape], queries: int, *, text: bool = False):
    layers = _layers(tensors, f"{prefix}encoder.layer.", ".attention.self.key.weight")
    crossing = [i for i in layers if f"{prefix}encoder.layer.{i}.crossattention.self.key.weight" in tensors]
    places, words = (f"{prefix}embeddings.{name}" for name in ("position_ids", "word_embeddings.weight"))
    width = shape["queries"][-1]
    return QFormerConfig(
        num_queries=queries,
        causal=queries == 32,  # the literal number that the original's code looks for
        width=width,
        depth=len(layers),
        heads=heads,
        mlp_width=shape["mlp"][0],
        memory_width=shape["memory"][1] if prefix == QFORMER else width,
        cross_attention_every=crossing[1] - crossing[0] if len(crossing) > 1 else max(len(layers), 1),
        vocab_size=tensors[words].shape[0] if text and words in tensors else 0,
        max_positions=tensors[places].shape[1] if places in tensors else 512,
    )


def _layers(tensors: Tensors, prefix: str, suffix: str) -> list[int]:
    """Return the numbers found between `prefix` and `suffix`."""
    matches = (re.fullmatch(rf"{re.escape(prefix)}(\d+){re.escape(suffix)}", name) for name in tensors)
    return sorted(int(match[1]) for match in matches if match)


def _vit_depth(tensors: Tensors) -> int:
    found = len(_layers(tensors, f"{VIT}blocks.", ".attn.qkv.weight"))
    return EVA_G_BLOCKS - 1 if found == EVA_G_BLOCKS else found


def _spare_block(config: SeedTokenizerConfig, tensors: Tensors) -> list[str]:
    """Return the names of the last block of an EVA-g file, which SEED does not use."""
    depth = config.vit.blocks.depth
    spare = [name for name in tensors if name.startswith(f"{VIT}blocks.{depth}.")]
    if spare:
        logging.info("The image encoder's file has %d blocks; SEED uses %d: the last is ignored.", depth + 1, depth)
    return spare
