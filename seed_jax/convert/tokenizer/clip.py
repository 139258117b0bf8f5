"""Import CLIP from Hugging Face files: the vision encoder with its projection, and the text encoder.

A folder holds config.json and the weights as model.safetensors or pytorch_model.bin, whole or sharded with an index. It
may be of a whole CLIP model, of one of its encoders, or Stable Diffusion's `text_encoder`. An encoder that was trained
here is read from its model directory or workdir in the same way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.diffusion.diffusers_import import TEXT_PREFIX, key_table
from seed_jax.convert.diffusion.folder_config import TEXT_DEFAULTS, TEXT_KEYS
from seed_jax.convert.key_table import (
    CONV,
    LINEAR,
    Entry,
    assemble,
    dense_entries,
    expected_shapes,
    norm_entries,
)
from seed_jax.convert.tensors import LazyTensor, TensorDict, check_tensors, open_tensors, weight_files
from seed_jax.errors import UserError
from seed_jax.files import read_json
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from seed_jax.models.config_io import from_dict as sizes_from_dict
from seed_jax.models.config_io import to_dict as sizes_to_dict
from seed_jax.models.tokenizer.vit import Vit, VitConfig
from seed_jax.typing import Tree

VISION = "vision_model."
_BLOCK_FIELDS = ("width", "depth", "heads", "mlp_width", "epsilon", "activation")
_REMEDY = "give the folder of a Hugging Face CLIP model"


def import_vision(directory: str | Path) -> tuple[VitConfig, Tree]:
    """Read the config and parameters (float32 NumPy arrays) of a CLIP vision encoder with projection."""
    config = vision_config(directory)
    if _model_dir_config(directory, ModelKind.CLIP_VISION):
        params = model_dir.load(directory, ModelKind.CLIP_VISION).variables["params"]
        return config, jax.tree.map(np.asarray, params)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    variables = jax.eval_shape(lambda key, x: Vit(config).init(key, x, method="embed"), jax.random.key(0), image)
    abstract = sharding.unbox(variables)["params"]
    tensors = _with_fused_attention(open_directory(directory), config.blocks.depth)
    return config, _assemble(_vision_table(config), tensors, abstract)


def import_text(directory: str | Path) -> tuple[ClipTextConfig, Tree]:
    """Read the config and parameters (float32 NumPy arrays) of a CLIP text encoder."""
    config = text_config(directory)
    if _model_dir_config(directory, ModelKind.CLIP_TEXT):
        params = model_dir.load(directory, ModelKind.CLIP_TEXT).variables["params"]
        return config, jax.tree.map(np.asarray, params)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    abstract = sharding.unbox(jax.eval_shape(ClipText(config).init, jax.random.key(0), ids))["params"]
    tensors = open_directory(directory)
    if "embeddings.token_embedding.weight" in tensors:  # a text encoder alone, as transformers writes it from 5 on
        tensors = tensors.with_prefix(TEXT_PREFIX)
    return config, _assemble(key_table("text", abstract), tensors, abstract)


def vision_config(directory: str | Path) -> VitConfig:
    """Read the config of the vision encoder from config.json."""
    if stored := _model_dir_config(directory, ModelKind.CLIP_VISION):
        return sizes_from_dict(VitConfig, stored.get("sizes", {}), str(directory))
    path = Path(directory) / "config.json"
    content = read_json(path, _REMEDY)
    config = _section(content, "vision_config", path)
    keys = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "activation": "hidden_act",
        "epsilon": "layer_norm_eps",
    }
    projection = content.get("projection_dim", config.get("projection_dim"))
    # Published files omit keys that equal the library's defaults.
    defaults = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224}
    fields = {field: config.get(key, defaults.get(key)) for field, key in keys.items()}
    _check_present({**{keys[field]: value for field, value in fields.items()}, "projection_dim": projection}, directory)
    blocks = {**sizes_to_dict(VitConfig.clip().blocks), **{name: fields.pop(name) for name in _BLOCK_FIELDS}}
    sizes = {**sizes_to_dict(VitConfig.clip()), **fields, "blocks": blocks, "projection": projection}
    return sizes_from_dict(VitConfig, sizes, str(path))


def _model_dir_config(directory: str | Path, kind: ModelKind) -> dict[str, Any] | None:
    """Return the config of a model directory or workdir of a kind, or None where the files are Hugging Face's."""
    for folder in (Path(directory), Path(directory) / "model"):
        if (folder / model_dir.CONFIG).is_file() and "kind" in read_json(folder / model_dir.CONFIG):
            return model_dir.read_config(directory, kind)[1]
    return None


def text_config(directory: str | Path) -> ClipTextConfig:
    """Read the config of the text encoder from config.json."""
    if stored := _model_dir_config(directory, ModelKind.CLIP_TEXT):
        return sizes_from_dict(ClipTextConfig, stored.get("sizes", {}), str(directory))
    path = Path(directory) / "config.json"
    content = read_json(path, _REMEDY)
    config = _section(content, "text_config", path)
    defaults = {**TEXT_DEFAULTS, "vocab_size": ClipTextConfig.vocab_size}
    fields = {field: config.get(key, defaults.get(key)) for field, key in TEXT_KEYS.items()}
    _check_present({TEXT_KEYS[field]: value for field, value in fields.items()}, directory)
    return sizes_from_dict(ClipTextConfig, fields, str(path))


def _section(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return the config of one encoder, which is a part of the file or all of it."""
    section = content.get(key, content)
    if not isinstance(section, dict):
        raise UserError(f"{path}: {key} holds a {type(section).__name__}, expected an object.")
    return section


def open_directory(directory: str | Path) -> TensorDict:
    """Open the weights in a Hugging Face folder."""
    return open_tensors(weight_files(Path(directory)))


def _check_present(values: Mapping[str, Any], directory: str | Path) -> None:
    missing = sorted(key for key, value in values.items() if value is None)
    if missing:
        raise UserError(f"{Path(directory) / 'config.json'} is not a CLIP model's: it lacks {', '.join(missing)}.")


def _assemble(table: Sequence[Entry], tensors: TensorDict, abstract: Tree) -> Tree:
    # The folder of a whole CLIP model holds another encoder too, so unexpected tensors are no error.
    check_tensors(expected_shapes(table, abstract), tensors, allow_unexpected=True)
    return assemble(table, tensors, abstract)


def _with_fused_attention(tensors: TensorDict, depth: int) -> TensorDict:
    """Add each layer's query, key and value projections as the single tensor that our blocks have."""
    fused: dict[str, LazyTensor] = {}
    for layer in range(depth):
        prefix = f"{VISION}encoder.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            names = [f"{prefix}{part}_proj.{kind}" for part in "qkv"]
            if all(name in tensors for name in names):
                fused[f"{prefix}qkv_proj.{kind}"] = _concatenate([tensors[name] for name in names])
    return TensorDict({**tensors, **fused}, tensors.source)


def _concatenate(parts: Sequence[LazyTensor]) -> LazyTensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return LazyTensor(shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts]))


def _vision_table(config: VitConfig) -> list[Entry]:
    layers = range(config.blocks.depth)
    name, path = f"{VISION}encoder.layers.{{}}.", "blocks/layers"
    return [
        Entry("cls_token", f"{VISION}embeddings.class_embedding"),
        Entry("patch_embed/kernel", f"{VISION}embeddings.patch_embedding.weight", CONV),
        Entry("pos_embed", f"{VISION}embeddings.position_embedding.weight"),
        *norm_entries("pre_norm", f"{VISION}pre_layrnorm"),
        *norm_entries(f"{path}/norm1", f"{name}layer_norm1", layers),
        *norm_entries(f"{path}/norm2", f"{name}layer_norm2", layers),
        *dense_entries(f"{path}/attn/qkv", f"{name}self_attn.qkv_proj", layers),
        *dense_entries(f"{path}/attn/proj", f"{name}self_attn.out_proj", layers),
        *dense_entries(f"{path}/mlp/fc1", f"{name}mlp.fc1", layers),
        *dense_entries(f"{path}/mlp/fc2", f"{name}mlp.fc2", layers),
        *norm_entries("final_norm", f"{VISION}post_layernorm"),
        Entry("head/kernel", "visual_projection.weight", LINEAR),
    ]
