"""Import a LLaMA from a Hugging Face directory: `config.json` and safetensors or PyTorch files, whole or sharded."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.key_table import assemble_lazily, expected_shapes, promoted_dtype
from seed_jax.convert.llama.key_table import abstract_params, key_table, rotary_buffers
from seed_jax.convert.tensors import TensorDict, check_tensors, open_tensors, weight_files
from seed_jax.errors import UserError
from seed_jax.files import read_json
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.typing import Tree

ARCHITECTURE = "LlamaForCausalLM"
# Fields of LlamaConfig -> keys of config.json.
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "rms_norm_eps": "rms_norm_eps",
    "max_length": "max_position_embeddings",
}
# Keys that change the computation, and the only supported value of each; a missing key means this value too.
_REQUIRED_VALUES = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
# The official 8B config has 0, 1 and -1 here, and generation then never ends (spec I.A.1).
TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_REMEDY = "give the directory of a complete Hugging Face model"


@dataclasses.dataclass(frozen=True)
class ImportedLlama:
    """A language model read from Hugging Face files.

    Args:
        params: tree of NumPy or lazy arrays.
        tensors: what the files hold.
    """

    config: LlamaConfig
    params: Tree
    tensors: TensorDict


def import_llama(directory: str | Path, dtype: str | None = None) -> ImportedLlama:
    """Read config and weights into NumPy arrays; see `open_llama`."""
    llama = open_llama(directory, dtype)
    return dataclasses.replace(llama, params=materialize(llama.params))


def open_llama(directory: str | Path, dtype: str | None = None) -> ImportedLlama:
    """Read the config and check every tensor's name and shape; weights are read when their lazy arrays are indexed.

        llama = open_llama("Llama-2-7b-hf", dtype="bfloat16")
        first_layer = llama.params["layers"]["self_attn"]["q_proj"]["kernel"][0]

    Args:
        directory: with `config.json` and the weight files.
        dtype: of the parameters; default: that of the files (the widest where there are several).

    Raises:
        UserError: the model is not a plain LLaMA, or its files are damaged or incomplete.
    """
    directory = Path(directory)
    config = read_config(directory / "config.json")
    tensors = open_tensors(weight_files(directory))
    table = key_table(config)
    expected = expected_shapes(table, abstract_params(config))
    check_tensors(expected, tensors, ignore=rotary_buffers(config))
    stored = str(promoted_dtype(tensors[name].dtype for name in expected))
    params = assemble_lazily(table, tensors, abstract_params(config, dtype or stored))
    return ImportedLlama(config, params, tensors)


def read_config(path: Path) -> LlamaConfig:
    """Read the model config from a `config.json`.

    Raises:
        UserError: a key is missing, or has a value that this LLaMA does not implement.
    """
    content = read_json(path, _REMEDY)
    if content.get("architectures") != [ARCHITECTURE]:
        raise UserError(f"{path} has architectures {content.get('architectures')}, expected [{ARCHITECTURE!r}].")
    missing = sorted(key for key in CONFIG_KEYS.values() if key not in content)
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not the config of a LLaMA.")
    for key, value in _REQUIRED_VALUES.items():
        if content.get(key, value) not in (value, None):
            raise UserError(f"{path} has {key} {content[key]!r}; only {value!r} is supported.")
    values = {field: content[key] for field, key in CONFIG_KEYS.items()}
    values["num_kv_heads"] = content.get("num_key_value_heads") or content["num_attention_heads"]
    values["rope_theta"] = _rope_theta(content, path)
    config = LlamaConfig.from_dict(values, str(path))
    if content.get("head_dim") not in (None, config.head_size):
        raise UserError(f"{path} has head_dim {content['head_dim']}; only hidden_size / heads is supported.")
    wrong = {key: content[key] for key, value in TOKEN_IDS.items() if content.get(key) not in (None, value)}
    if wrong:
        right = ", ".join(f"{key} {TOKEN_IDS[key]}" for key in wrong)
        logging.info("%s has %s: the tokenizer's %s are used instead.", path, wrong, right)
    return config


def _rope_theta(content: Mapping[str, Any], path: Path) -> Any:
    """Return the base of the rotary angles from either key under which transformers writes it; refuse any scaling."""
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{path} scales its rotary positions ({rope}); only unscaled ones are supported.")
    return rope.get("rope_theta") or content.get("rope_theta") or 10000.0
