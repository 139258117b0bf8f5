"""Import an OPT from a Hugging Face directory: `config.json` and safetensors or PyTorch files, whole or sharded."""

import dataclasses
from pathlib import Path

import numpy as np

from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.key_table import assemble_lazily, expected_shapes, promoted_dtype
from seed_jax.convert.opt.key_table import (
    CODE_PROJECTION,
    DECODER,
    EMBEDDING,
    TIED_HEAD,
    abstract_params,
    code_projection,
    key_table,
)
from seed_jax.convert.tensors import TensorDict, check_tensors, open_tensors, weight_files
from seed_jax.errors import UserError
from seed_jax.files import read_json
from seed_jax.models.opt.config import OptConfig
from seed_jax.typing import Tree

ARCHITECTURE = "OPTForCausalLM"
# Fields of OptConfig -> keys of config.json.
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_dim",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_length": "max_position_embeddings",
    "word_embed_size": "word_embed_proj_dim",
    "pre_norm": "do_layer_norm_before",
}
# Keys that change the computation, and the only supported value of each; a missing key means this value too.
REQUIRED_VALUES = {
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "quantization_config": None,
}
TOKEN_IDS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
_DEFAULTS = {"do_layer_norm_before": True, "max_position_embeddings": 2048}
_REMEDY = "give the directory of a complete Hugging Face model"


@dataclasses.dataclass(frozen=True)
class ImportedOpt:
    """A language model read from Hugging Face files.

    Args:
        config: sizes.
        params: tree of NumPy or lazy arrays.
        tensors: what the files hold, with full names.
    """

    config: OptConfig
    params: Tree
    tensors: TensorDict


def import_opt(directory: str | Path, dtype: str | None = None) -> ImportedOpt:
    """Read config and weights into NumPy arrays; see `open_opt`."""
    opt = open_opt(directory, dtype)
    return dataclasses.replace(opt, params=materialize(opt.params))


def open_opt(directory: str | Path, dtype: str | None = None) -> ImportedOpt:
    """Read the config and check every tensor's name and shape; weights are read when their lazy arrays are indexed.

        opt = open_opt("opt-2.7b", dtype="bfloat16")

    Args:
        directory: with `config.json` and the weight files.
        dtype: of the parameters; default: that of the files (the widest where there are several).

    Raises:
        UserError: the model is not an OPT, its head is not tied, or its files are damaged or incomplete.
    """
    directory = Path(directory)
    config = read_config(directory / "config.json")
    tensors = _with_full_names(open_tensors(weight_files(directory)))
    table = key_table(config)
    if (directory / CODE_PROJECTION).is_file():  # SEED-OPT, as `export_opt` writes it
        codes = open_tensors(directory / CODE_PROJECTION)
        if len(shape := codes["code_vectors"].shape if "code_vectors" in codes else ()) != 2:
            raise UserError(f"{directory / CODE_PROJECTION} has no matrix code_vectors: export the model again.")
        config = dataclasses.replace(config, num_codes=shape[0], code_width=shape[1])
        beside = code_projection(config)
        assert beside is not None  # there are codes
        table, tensors = table + beside[1], tensors.merged(codes)
    expected = expected_shapes(table, abstract_params(config))
    check_tensors(expected, tensors, ignore=[TIED_HEAD])
    if TIED_HEAD in tensors and not np.array_equal(tensors[TIED_HEAD].read(), tensors[EMBEDDING].read()):
        raise UserError(f"{tensors.source}: {TIED_HEAD} differs from {EMBEDDING}; only an OPT with a tied head fits.")
    stored = str(promoted_dtype(tensors[name].dtype for name in expected))
    return ImportedOpt(config, assemble_lazily(table, tensors, abstract_params(config, dtype or stored)), tensors)


def read_config(path: Path) -> OptConfig:
    """Read the model config from a `config.json`.

    Raises:
        UserError: a key is missing, or has a value that this OPT does not implement.
    """
    content = read_json(path, _REMEDY)
    if content.get("model_type") != "opt" or content.get("architectures") not in (None, [ARCHITECTURE]):
        raise UserError(
            f"{path} has model_type {content.get('model_type')!r} and architectures {content.get('architectures')}, "
            f"expected 'opt' and [{ARCHITECTURE!r}]."
        )
    content = {**_DEFAULTS, "word_embed_proj_dim": content.get("hidden_size"), **content}
    missing = sorted(key for key in CONFIG_KEYS.values() if content.get(key) is None)
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not the config of an OPT.")
    for key, value in REQUIRED_VALUES.items():
        if content.get(key, value) not in (value, None):
            raise UserError(f"{path} has {key} {content[key]!r}; only {value!r} is supported.")
    values = {field: content[key] for field, key in CONFIG_KEYS.items()}
    values["final_norm"] = values["pre_norm"] is True and not content.get("_remove_final_layer_norm", False)
    values["epsilon"] = OptConfig.epsilon
    return OptConfig.from_dict(values, str(path))


def _with_full_names(tensors: TensorDict) -> TensorDict:
    """Return the tensors under the names of `OPTForCausalLM`: the files of the release lack the prefix `model.`."""
    short = DECODER.removeprefix("model.")
    renamed = {f"model.{name}" if name.startswith(short) else name: tensor for name, tensor in tensors.items()}
    return TensorDict(renamed, tensors.source)
