"""Import the image tokenizer from the official files: `seed_quantizer.pt` and `eva_vit_g.pth` (spec A.8)."""

import dataclasses
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.key_table import assemble_lazily, expected_shapes
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import Shape, TensorDict, check_tensors, format_names, open_tensors
from seed_jax.convert.tokenizer.key_table import QFORMER, REVERSE, VIT, key_table, position_buffers
from seed_jax.errors import UserError
from seed_jax.files import check_vacant
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.models.tokenizer.vit import BlockConfig, VitConfig
from seed_jax.typing import Tree

EVA_G_BLOCKS = 40  # SEED uses 39 of them
EXTRAS = "extras.safetensors"  # file of a model directory: tensors that the image tokenizer does not use

# What the released file holds besides the image tokenizer (spec A.8.2): the stage I text encoder and projections, the
# branch that predicts Stable Diffusion's text states, and buffers of its frozen CLIP teachers.
EXTRA_NAMES = re.compile(
    r"temp|(vision|text)_proj\.(weight|bias)|itm_head\.(weight|bias)"
    r"|Qformer\.cls\..*|Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*"
    r"|pos_embed_text|blocks_text\..*|Reverse_Qformer_text\..*|reverse_tokens_text|distill_text_proj\.(weight|bias)"
    r"|.*\bposition_ids"
)
_BUFFERS = "position_ids"  # suffix of constant position indices, among the extras too
# The tensors from whose shapes the config is inferred.
_PROBES = {
    "patch": f"{VIT}patch_embed.proj.weight",
    "positions": f"{VIT}pos_embed",
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
    """An image tokenizer read from official files.

    Args:
        params: tree of NumPy or lazy arrays.
        extras: known tensors that the image tokenizer does not use.
        unknown: names of tensors that neither the tokenizer nor the extras have.
        tensors: everything the files hold, the ViT's with their prefix.
    """

    config: SeedTokenizerConfig
    params: Tree
    extras: TensorDict
    unknown: list[str]
    tensors: TensorDict


def import_to_model_dir(
    quantizer: str | Path,
    vit: str | Path | None,
    out: str | Path,
    *,
    vit_heads: int = 16,
    qformer_heads: int = 12,
    decoder_heads: int = 12,
) -> ImportedTokenizer:
    """Convert the official files to a model directory, one tensor at a time.

        import_to_model_dir("seed_quantizer.pt", "eva_vit_g.pth", "weights/tokenizer")

    Tensors of the text encoder and text branch are kept in `extras.safetensors`, for retrieval and further training.

    Args:
        quantizer, vit, vit_heads, qformer_heads, decoder_heads: as for `open_tokenizer`.
        out: model directory to write, atomically; must be missing or empty.

    Returns:
        What was imported.

    Raises:
        UserError: the files are damaged, incomplete, or not of a SEED tokenizer.
    """
    check_vacant(Path(out))  # before minutes of reading
    imported = open_tokenizer(
        quantizer, vit, vit_heads=vit_heads, qformer_heads=qformer_heads, decoder_heads=decoder_heads
    )
    provenance = {"quantizer": str(quantizer), "vit": vit and str(vit), "unknown": imported.unknown}
    keys = {"sizes": imported.config.to_dict()}
    files: dict[str, Callable[[Path], Any]] = {}
    if imported.extras:
        files[EXTRAS] = lambda path: write_lazy_tensors(path, imported.extras, np.dtype(np.float32))
        logging.info("%d tensors of the text side are kept in %s.", len(imported.extras), EXTRAS)
    model_dir.save(out, ModelKind.IMAGE_TOKENIZER, keys, imported.params, files=files, provenance=provenance)
    return imported


def import_tokenizer(
    quantizer: str | Path,
    vit: str | Path | None = None,
    *,
    vit_heads: int = 16,
    qformer_heads: int = 12,
    decoder_heads: int = 12,
    text: bool = False,
) -> ImportedTokenizer:
    """Read the official weights into NumPy arrays; see `open_tokenizer`."""
    tokenizer = open_tokenizer(
        quantizer, vit, vit_heads=vit_heads, qformer_heads=qformer_heads, decoder_heads=decoder_heads, text=text
    )
    return dataclasses.replace(tokenizer, params=materialize(tokenizer.params))


def open_tokenizer(
    quantizer: str | Path,
    vit: str | Path | None = None,
    *,
    vit_heads: int = 16,
    qformer_heads: int = 12,
    decoder_heads: int = 12,
    text: bool = False,
) -> ImportedTokenizer:
    """Check every tensor's name and shape; weights are read (as float32) when their lazy arrays are indexed.

    The config is inferred from the shapes.

    Args:
        quantizer: `seed_quantizer.pt`, or a safetensors file with the same names.
        vit: `eva_vit_g.pth`, whose names have no prefix; not needed if `quantizer` holds `visual_encoder.*` too.
        vit_heads, qformer_heads, decoder_heads: numbers of attention heads, which no shape shows.
        text: make the text side part of the Q-Former instead of an extra.

    Raises:
        UserError: the files are damaged, incomplete, or not of a SEED tokenizer.
    """
    tensors = _open(quantizer, vit)
    config = infer_config(tensors, vit_heads, qformer_heads, decoder_heads, text=text)
    table, abstract = key_table(config), abstract_params(config)
    expected = expected_shapes(table, abstract)
    unused = _unused_block(config, tensors)
    extras = [name for name in tensors if name not in expected and EXTRA_NAMES.fullmatch(name)]
    ignored = [*extras, *unused, *position_buffers(config)]
    unknown = check_tensors(expected, tensors, ignore=ignored, allow_unexpected=True)
    if unknown:
        logging.warning("Ignored %d unknown tensors: %s", len(unknown), format_names(unknown))
    kept = TensorDict({name: tensors[name] for name in extras if not name.endswith(_BUFFERS)}, tensors.source)
    return ImportedTokenizer(config, assemble_lazily(table, tensors, abstract), kept, unknown, tensors)


def infer_config(
    tensors: TensorDict, vit_heads: int, qformer_heads: int, decoder_heads: int, *, text: bool = False
) -> SeedTokenizerConfig:
    """Infer the model config from the shapes of tensors with official names; arguments as for `open_tokenizer`."""
    missing = [name for name in _PROBES.values() if name not in tensors]
    if missing:
        raise UserError(f"{tensors.source} is not a SEED tokenizer: it lacks {format_names(missing)}, among others.")
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
    image_down = [tensors[name].shape[0] for i in range(0, 99, 2) if (name := f"image_down.{i}.weight") in tensors]
    return SeedTokenizerConfig(
        vit=VitConfig(math.isqrt(shape["positions"][1] - 1) * patch, patch, blocks),
        qformer=_qformer_config(tensors, QFORMER, qformer_heads, shape, shape["queries"][1], text=text),
        num_codes=shape["codebook"][0],
        code_width=shape["codebook"][1],
        decoder=decoder,
        head="reverse_qformer" if has_reverse else "mlp",
        image_down=tuple(image_down),
        reverse=reverse,
        embedding_width=shape["embedding"][0],
    )


def _open(quantizer: str | Path, vit: str | Path | None) -> TensorDict:
    tensors = open_tensors(quantizer)
    if vit is not None:
        return with_vit(tensors, open_tensors(vit))
    if not any(name.startswith(VIT) for name in tensors):
        raise UserError(f"{quantizer} does not hold the ViT: give its file (eva_vit_g.pth) with --vit.")
    return tensors


def with_vit(tensors: TensorDict, vit: TensorDict | None = None) -> TensorDict:
    """Merge the ViT's tensors into the quantizer's, with their prefix, which the ViT's own file lacks."""
    if vit is None:
        return tensors
    prefixed = any(name.startswith(VIT) for name in vit)
    return tensors.merged(vit if prefixed else vit.with_prefix(VIT))


def _qformer_config(
    tensors: TensorDict, prefix: str, heads: int, shape: dict[str, Shape], queries: int, *, text: bool = False
) -> QFormerConfig:
    layers = _layers(tensors, f"{prefix}encoder.layer.", ".attention.self.key.weight")
    cross_layers = [i for i in layers if f"{prefix}encoder.layer.{i}.crossattention.self.key.weight" in tensors]
    positions, words = f"{prefix}embeddings.position_ids", f"{prefix}embeddings.word_embeddings.weight"
    width = shape["queries"][-1]
    return QFormerConfig(
        num_queries=queries,
        causal=queries == 32,  # the original code compares with this literal
        width=width,
        depth=len(layers),
        heads=heads,
        mlp_width=shape["mlp"][0],
        memory_width=shape["memory"][1] if prefix == QFORMER else width,
        cross_attention_every=cross_layers[1] - cross_layers[0] if len(cross_layers) > 1 else max(len(layers), 1),
        vocab_size=tensors[words].shape[0] if text and words in tensors else 0,
        max_positions=tensors[positions].shape[1] if positions in tensors else 512,
    )


def _layers(tensors: TensorDict, prefix: str, suffix: str) -> list[int]:
    """Return the layer numbers in names PREFIX{number}SUFFIX."""
    matches = (re.fullmatch(rf"{re.escape(prefix)}(\d+){re.escape(suffix)}", name) for name in tensors)
    return sorted(int(match[1]) for match in matches if match)


def _vit_depth(tensors: TensorDict) -> int:
    depth = len(_layers(tensors, f"{VIT}blocks.", ".attn.qkv.weight"))
    return EVA_G_BLOCKS - 1 if depth == EVA_G_BLOCKS else depth


def _unused_block(config: SeedTokenizerConfig, tensors: TensorDict) -> list[str]:
    """Return the names of the last block of an EVA-g file, which SEED does not use."""
    depth = config.vit.blocks.depth
    unused = [name for name in tensors if name.startswith(f"{VIT}blocks.{depth}.")]
    if unused:
        logging.info("The ViT's file has %d blocks; SEED uses %d: the last is ignored.", depth + 1, depth)
    return unused
