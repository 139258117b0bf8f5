"""Import the image tokenizers from the official files (spec A.8, G).

SEED-2: `seed_quantizer.pt` and `eva_vit_g.pth`. SEED-1: `causal_qformer.pth` (stage I), `seed_tokenizer.pth` (stage II)
and `eva_vit_g.pth`.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.key_table import assemble_lazily, expected_shapes
from seed_jax.convert.model_card.facts import ARTEFACTS, origins
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import LazyTensor, Shape, TensorDict, check_tensors, format_names, open_tensors
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
}
_IMAGE_PROBES = {"decoder_mlp": "blocks_image.0.mlp.fc1.weight", "embedding": "distill_image_proj.weight"}
_TEXT_PROBES = {"decoder_mlp": "blocks_text.0.mlp.fc1.weight", "embedding": "distill_text_proj.weight"}  # SEED-1's


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
    _save(imported, out, {"quantizer": str(quantizer), "vit": vit and str(vit)})
    return imported


def import_seed1_to_model_dir(
    qformer: str | Path,
    codebook: str | Path,
    vit: str | Path | None,
    out: str | Path,
    *,
    vit_heads: int = 16,
    qformer_heads: int = 12,
    decoder_heads: int = 12,
) -> ImportedTokenizer:
    """Convert the official files of SEED-1 to a model directory, one tensor at a time.

        import_seed1_to_model_dir("causal_qformer.pth", "seed_tokenizer.pth", "eva_vit_g.pth", "weights/seed1")

    Args:
        qformer, codebook, vit, vit_heads, qformer_heads, decoder_heads: as for `open_seed1`.
        out: model directory to write, atomically; must be missing or empty.

    Returns:
        What was imported.

    Raises:
        UserError: the files are damaged, incomplete, or not of a SEED-1 tokenizer.
    """
    check_vacant(Path(out))
    imported = open_seed1(
        qformer, codebook, vit, vit_heads=vit_heads, qformer_heads=qformer_heads, decoder_heads=decoder_heads
    )
    _save(imported, out, {"qformer": str(qformer), "codebook": str(codebook), "vit": vit and str(vit)})
    return imported


def _save(imported: ImportedTokenizer, out: str | Path, files_read: dict[str, str | None]) -> None:
    provenance = {**files_read, "unknown": imported.unknown, ARTEFACTS: origins(*files_read.values())}
    keys = {"sizes": imported.config.to_dict()}
    files: dict[str, Callable[[Path], Any]] = {}
    if imported.extras:
        files[EXTRAS] = lambda path: write_lazy_tensors(path, imported.extras, np.dtype(np.float32))
        logging.info("%d tensors of the text side are kept in %s.", len(imported.extras), EXTRAS)
    model_dir.save(out, ModelKind.IMAGE_TOKENIZER, keys, imported.params, files=files, provenance=provenance)


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
    if is_seed1(tensors):
        raise UserError(
            f"{quantizer} holds SEED-1's tokenizer, which predicts text features: import it with --seed1, --qformer "
            "causal_qformer.pth and --codebook seed_tokenizer.pth."
        )
    return _assemble(tensors, infer_config(tensors, vit_heads, qformer_heads, decoder_heads, text=text))


def open_seed1(
    qformer: str | Path,
    codebook: str | Path,
    vit: str | Path | None = None,
    *,
    vit_heads: int = 16,
    qformer_heads: int = 12,
    decoder_heads: int = 12,
) -> ImportedTokenizer:
    """Check every tensor of SEED-1's files, as `open_tokenizer` does for SEED-2's.

    The original loads the ViT, then stage I, then stage II: where two files hold a tensor, the later one's is taken.

    Args:
        qformer: `causal_qformer.pth` of stage I, or a safetensors file with the same names.
        codebook: `seed_tokenizer.pth` of stage II, likewise.
        vit: `eva_vit_g.pth`; not needed if one of the others holds `visual_encoder.*`.
        vit_heads, qformer_heads, decoder_heads: numbers of attention heads, which no shape shows.

    Raises:
        UserError: the files are damaged, incomplete, interchanged, or of SEED-2's tokenizer.
    """
    stage1, stage2 = open_tensors(qformer), open_tensors(codebook)
    _check_stages(stage1, stage2)
    parts = [with_vit(TensorDict({}, str(vit)), open_tensors(vit))] if vit is not None else []
    parts += [stage1, stage2]
    merged: dict[str, LazyTensor] = {}
    for part in parts:
        replaced = merged.keys() & part.keys()
        if replaced:
            logging.info("%s replaces %s of the files before it.", part.source, format_names(replaced))
        merged |= part
    tensors = TensorDict(merged, " and ".join(part.source for part in parts))
    if not any(name.startswith(VIT) for name in tensors):
        raise UserError(f"{tensors.source} do not hold the ViT: give its file (eva_vit_g.pth) with --vit.")
    return _assemble(tensors, infer_config(tensors, vit_heads, qformer_heads, decoder_heads))


def is_seed1(tensors: Mapping[str, LazyTensor]) -> bool:
    """Return whether official tensors predict text features only; SEED-2's also hold the image embedding's head."""
    return _TEXT_PROBES["embedding"] in tensors and _IMAGE_PROBES["embedding"] not in tensors


def _check_stages(stage1: TensorDict, stage2: TensorDict) -> None:
    codebook = _PROBES["codebook"]
    for tensors in (stage1, stage2):
        if _IMAGE_PROBES["embedding"] in tensors:
            raise UserError(
                f"{tensors.source} holds SEED-2's tokenizer, which predicts an image embedding: import it with "
                "--quantizer, without --seed1."
            )
    if codebook not in stage2:
        reason = "interchanged with --qformer" if codebook in stage1 else "not of stage II"
        raise UserError(
            f"{stage2.source} holds no codebook ({codebook}), so it is {reason}: give seed_tokenizer.pth with "
            "--codebook and causal_qformer.pth with --qformer."
        )
    if not is_seed1(stage2):
        raise UserError(f"{stage2.source} is not of a SEED-1 tokenizer: it lacks {_TEXT_PROBES['embedding']}.")


def _assemble(tensors: TensorDict, config: SeedTokenizerConfig) -> ImportedTokenizer:
    """Check every tensor's name and shape and describe the parameters."""
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
    seed1 = is_seed1(tensors)
    probes = _PROBES | (_TEXT_PROBES if seed1 else _IMAGE_PROBES)
    missing = [name for name in probes.values() if name not in tensors]
    if missing:
        raise UserError(f"{tensors.source} is not a SEED tokenizer: it lacks {format_names(missing)}, among others.")
    shape = {key: tensors[name].shape for key, name in probes.items()}
    width, _, patch, _ = shape["patch"]
    decoder = BlockConfig(
        width=shape["queries"][-1],
        depth=len(_layers(tensors, "blocks_text." if seed1 else "blocks_image.", ".attn.qkv.weight")),
        heads=decoder_heads,
        mlp_width=shape["decoder_mlp"][0],
        key_bias=True,
    )
    blocks = BlockConfig(width, _vit_depth(tensors), vit_heads, shape["vit_mlp"][0])
    has_reverse = "reverse_tokens" in tensors
    reverse = None
    if has_reverse:
        queries = tensors["reverse_tokens"].shape[1]
        reverse = _qformer_config(tensors, REVERSE, qformer_heads, shape, queries)
    head = "text_features" if seed1 else "reverse_qformer" if has_reverse else "mlp"
    image_down = [tensors[name].shape[0] for i in range(0, 99, 2) if (name := f"image_down.{i}.weight") in tensors]
    return SeedTokenizerConfig(
        vit=VitConfig(math.isqrt(shape["positions"][1] - 1) * patch, patch, blocks),
        qformer=_qformer_config(tensors, QFORMER, qformer_heads, shape, shape["queries"][1], text=text),
        num_codes=shape["codebook"][0],
        code_width=shape["codebook"][1],
        decoder=decoder,
        head=head,
        image_down=tuple(image_down),
        reverse=reverse,
        embedding_width=shape["embedding"][0],
        reconstruction=not seed1 or "pos_embed" in tensors,
    )


def _open(quantizer: str | Path, vit: str | Path | None) -> TensorDict:
    tensors = open_tensors(quantizer)
    if vit is not None:
        return with_vit(tensors, open_tensors(vit))
    if not any(name.startswith(VIT) for name in tensors):
        raise UserError(f"{quantizer} does not hold the ViT: give its file (eva_vit_g.pth) with --vit.")
    return tensors


def with_vit(tensors: TensorDict, vit: TensorDict) -> TensorDict:
    """Merge the ViT's tensors into the quantizer's, with their prefix, which the ViT's own file lacks."""
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
