"""Read CLIP from Hugging Face files: the vision tower with its projection, and the text encoder.

A folder holds config.json and the weights as model.safetensors or pytorch_model.bin, whole or sharded with an index.
Folders of a whole CLIP model, of one tower, and of Stable Diffusion (`text_encoder`) all serve. A vision tower that was
trained here is read from its own model directory or workdir in the same way.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from seed_jax.checkpoint import model_dir
from seed_jax.convert import key_table as tables
from seed_jax.convert.key_table import CONV, MATRIX, Entry, dense_entries, norm_entries
from seed_jax.convert.tensors import Tensor, Tensors, check, open_tensors
from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from seed_jax.models.clip.vision import clip_vision_config
from seed_jax.models.config_io import from_dict as sizes_from_dict
from seed_jax.models.tokenizer.vit import Vit, VitConfig

VISION = "vision_model."
TEXT = "text_model."
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
KIND = "clip_vision"  # of a model directory of ours
Tree = dict[str, Any]


def import_vision(directory: str | Path) -> tuple[VitConfig, Tree]:
    """Return sizes and parameters (float32 NumPy arrays) of a CLIP vision tower with projection."""
    config = vision_config(directory)
    if _own_config(directory):
        found = model_dir.load(directory, KIND).params
        return config, jax.tree.map(np.asarray, found.get("params", found))
    shapes = meta.unbox(
        jax.eval_shape(lambda key, x: Vit(config).init(key, x, method="embed"), jax.random.key(0), _picture(config))
    )["params"]
    tensors = _with_fused_attention(open_directory(directory), config.blocks.depth)
    return config, _assemble(_vision_table(config), tensors, shapes)


def import_text(directory: str | Path) -> tuple[ClipTextConfig, Tree]:
    """Return sizes and parameters (float32 NumPy arrays) of a CLIP text encoder."""
    config = text_config(directory)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = meta.unbox(jax.eval_shape(ClipText(config).init, jax.random.key(0), ids))["params"]
    tensors = open_directory(directory)
    if "embeddings.token_embedding.weight" in tensors:  # a text encoder alone, as transformers writes it from 5 on
        tensors = tensors.with_prefix(TEXT)
    return config, _assemble(_text_table(config), tensors, shapes)


def vision_config(directory: str | Path) -> VitConfig:
    """Read the sizes of the vision tower from config.json."""
    if own := _own_config(directory):
        return sizes_from_dict(VitConfig, own["sizes"], str(directory))
    whole = _read_config(directory)
    config = whole.get("vision_config", whole)
    names = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "activation": "hidden_act",
        "epsilon": "layer_norm_eps",
    }
    projection = whole.get("projection_dim", config.get("projection_dim"))
    # Published files leave out what equals the library's defaults.
    defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224}
    sizes = {ours: config.get(theirs, defaults.get(theirs)) for ours, theirs in names.items()}
    _require({**{names[k]: v for k, v in sizes.items()}, "projection_dim": projection}, directory)
    return clip_vision_config(**sizes, projection=projection)


def _own_config(directory: str | Path) -> dict[str, Any] | None:
    """Return the config of a model directory of ours, or None where there are Hugging Face files."""
    for folder in (Path(directory), Path(directory) / "model"):
        if (folder / model_dir.CONFIG).is_file() and "kind" in _json(folder / model_dir.CONFIG):
            return model_dir.read_config(directory, KIND)[1]
    return None


def text_config(directory: str | Path) -> ClipTextConfig:
    """Read the sizes of the text encoder from config.json."""
    whole = _read_config(directory)
    config = whole.get("text_config", whole)
    defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77, "vocab_size": 49408}
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "max_length": "max_position_embeddings",
        "activation": "hidden_act",
        "layer_norm_eps": "layer_norm_eps",
    }
    sizes = {ours: config.get(theirs, defaults.get(theirs)) for ours, theirs in names.items()}
    _require({names[k]: v for k, v in sizes.items()}, directory)
    return ClipTextConfig(**sizes)


def open_directory(directory: str | Path) -> Tensors:
    """Open the weights in a Hugging Face folder."""
    directory = Path(directory)
    for name in _INDEXES:
        if (directory / name).is_file():
            parts = sorted(set(_json(directory / name)["weight_map"].values()))
            return open_tensors([directory / part for part in parts])
    for name in _WHOLE:
        if (directory / name).is_file():
            return open_tensors(directory / name)
    raise UserError(f"{directory} holds no weights: expected {' or '.join(_WHOLE)}, whole or with an index.")


def _read_config(directory: str | Path) -> Mapping[str, Any]:
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the folder of a Hugging Face CLIP model.")
    return _json(path)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again.") from error


def _require(found: Mapping[str, Any], directory: str | Path) -> None:
    missing = sorted(key for key, value in found.items() if value is None)
    if missing:
        raise UserError(f"{Path(directory) / 'config.json'} is not a CLIP model's: it lacks {', '.join(missing)}.")


def _picture(config: VitConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)


def _assemble(table: Sequence[Entry], tensors: Tensors, shapes: Tree) -> Tree:
    # A folder of the whole CLIP model has another tower beside, so what is not expected is no error.
    check(tables.expected_shapes(table, shapes), tensors, allow_unexpected=True)
    return tables.assemble(table, tensors, shapes)


def _with_fused_attention(tensors: Tensors, depth: int) -> Tensors:
    """Add each layer's query, key and value projections as the one tensor that our blocks have."""
    fused = {}
    for layer in range(depth):
        prefix = f"{VISION}encoder.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            parts = [tensors.get(f"{prefix}{part}_proj.{kind}") for part in "qkv"]
            if all(parts):
                fused[f"{prefix}qkv_proj.{kind}"] = _stacked(parts)
    return Tensors({**tensors, **fused}, tensors.where)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Tensor(shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts]))


def _vision_table(config: VitConfig) -> list[Entry]:
    layers = range(config.blocks.depth)
    theirs, ours = f"{VISION}encoder.layers.{{}}.", "blocks/layers"
    return [
        Entry("cls_token", f"{VISION}embeddings.class_embedding"),
        Entry("patch_embed/kernel", f"{VISION}embeddings.patch_embedding.weight", CONV),
        Entry("pos_embed", f"{VISION}embeddings.position_embedding.weight"),
        *norm_entries("pre_norm", f"{VISION}pre_layrnorm"),
        *norm_entries(f"{ours}/norm1", f"{theirs}layer_norm1", layers),
        *norm_entries(f"{ours}/norm2", f"{theirs}layer_norm2", layers),
        *dense_entries(f"{ours}/attn/qkv", f"{theirs}self_attn.qkv_proj", layers),
        *dense_entries(f"{ours}/attn/proj", f"{theirs}self_attn.out_proj", layers),
        *dense_entries(f"{ours}/mlp/fc1", f"{theirs}mlp.fc1", layers),
        *dense_entries(f"{ours}/mlp/fc2", f"{theirs}mlp.fc2", layers),
        *norm_entries("final_norm", f"{VISION}post_layernorm"),
        Entry("head/kernel", "visual_projection.weight", MATRIX),
    ]


def _text_table(config: ClipTextConfig) -> list[Entry]:
    layers = range(config.num_layers)
    theirs = f"{TEXT}encoder.layers.{{}}."
    entries = [
        Entry("token_embedding", f"{TEXT}embeddings.token_embedding.weight"),
        Entry("position_embedding", f"{TEXT}embeddings.position_embedding.weight"),
        *norm_entries("final_layer_norm", f"{TEXT}final_layer_norm"),
    ]
    for name in ("layer_norm1", "layer_norm2"):
        entries += norm_entries(f"layers/{name}", f"{theirs}{name}", layers)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        entries += dense_entries(f"layers/self_attn/{name}", f"{theirs}self_attn.{name}", layers)
    for name in ("fc1", "fc2"):
        entries += dense_entries(f"layers/{name}", f"{theirs}mlp.{name}", layers)
    return entries
