"""Read a LLaMA from a Hugging Face directory: `config.json` and safetensors or PyTorch files, whole or sharded."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.key_table import assemble_lazily, expected_shapes, widest
from seed_jax.convert.llama.key_table import abstract_params, key_table, rotary_buffers
from seed_jax.convert.tensors import Tensors, check, open_tensors
from seed_jax.errors import UserError
from seed_jax.models.llama.model import LlamaConfig

ARCHITECTURE = "LlamaForCausalLM"
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "rms_norm_eps": "rms_norm_eps",
    "max_length": "max_position_embeddings",
}
# Settings that would change the computation, and the one value each may have (or be absent).
_FIXED = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
# The official 8B config has 0, 1 and -1 here, and generation then never ends (spec I.A.1).
TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclasses.dataclass(frozen=True)
class ImportedLlama:
    """A language model in Hugging Face files; `params` are arrays, NumPy's or lazy ones."""

    config: LlamaConfig
    params: dict[str, Any]
    tensors: Tensors  # what the files hold


def import_llama(directory: str | Path, dtype: str | None = None) -> ImportedLlama:
    """Read config and weights into NumPy arrays; see `open_llama`."""
    found = open_llama(directory, dtype)
    return dataclasses.replace(found, params=materialize(found.params))


def open_llama(directory: str | Path, dtype: str | None = None) -> ImportedLlama:
    """Read the config and check every tensor's name and shape; weights are read when they are asked for.

    Args:
        dtype: number format of the parameters; by default the files' (the widest where there are several).
    """
    directory = Path(directory)
    config = read_config(directory / "config.json")
    tensors = open_tensors(weight_files(directory))
    table = key_table(config)
    expected = expected_shapes(table, abstract_params(config))
    check(expected, tensors, ignore=rotary_buffers(config))
    stored = str(widest(tensors[name].dtype for name in expected))
    params = assemble_lazily(table, tensors, abstract_params(config, dtype or stored))
    return ImportedLlama(config, params, tensors)


def read_config(path: Path) -> LlamaConfig:
    """Read sizes from a `config.json`; UserError for anything that this LLaMA does not compute."""
    found = read_json(path)
    if ARCHITECTURE not in (found.get("architectures") or []):
        raise UserError(f"{path} has architectures {found.get('architectures')}, expected [{ARCHITECTURE!r}].")
    missing = sorted(name for name in SIZES.values() if name not in found)
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not the config of a LLaMA.")
    for name, value in _FIXED.items():
        if found.get(name, value) not in (value, None):
            raise UserError(f"{path} has {name} {found[name]!r}; only {value!r} is supported.")
    values = {ours: found[theirs] for ours, theirs in SIZES.items()}
    heads = found.get("num_key_value_heads") or found["num_attention_heads"]
    sizes = {**values, "num_kv_heads": heads, "rope_theta": _rope_theta(found, path)}
    config = LlamaConfig.from_dict(sizes, str(path))
    if found.get("head_dim") not in (None, config.head_size):
        raise UserError(f"{path} has head_dim {found['head_dim']}; only hidden_size / heads is supported.")
    wrong = {name: found[name] for name, value in TOKEN_IDS.items() if found.get(name) not in (None, value)}
    if wrong:
        right = ", ".join(f"{name} {TOKEN_IDS[name]}" for name in wrong)
        logging.info("%s has %s: the tokenizer's %s are used instead.", path, wrong, right)
    return config


def _rope_theta(found: Mapping[str, Any], path: Path) -> float:
    """Return the base of the rotary angles from either place where transformers writes it; refuse any scaling."""
    rope = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{path} scales its rotary positions ({rope}); only plain ones are supported.")
    return float(rope.get("rope_theta") or found.get("rope_theta") or 10000.0)


def weight_files(directory: Path, stem: str = "model") -> list[Path]:
    """Find `STEM.safetensors` or `pytorch_STEM.bin`, or the shards that an index beside them lists.

    Safetensors are preferred where a directory has both.
    """
    for name in (f"{stem}.safetensors", f"pytorch_{stem}.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            return [directory / shard for shard in sorted(set(read_json(index).get("weight_map", {}).values()))]
    raise UserError(f"{directory} has no weights: expected {stem}.safetensors, pytorch_{stem}.bin or their shards.")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the directory of a Hugging Face model.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object.")
    return found
