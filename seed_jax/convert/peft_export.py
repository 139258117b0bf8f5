"""Write adapters as a folder that `peft.PeftModel.from_pretrained` loads onto a base model."""

from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.checkpoint.model_dir import write_json
from seed_jax.convert.llama_source import LlamaSource
from seed_jax.convert.llama_table import NORMS
from seed_jax.convert.peft import adapter_table, replaced_table
from seed_jax.convert.safetensors_writer import write_safetensors
from seed_jax.convert.table import open_ours
from seed_jax.convert.tensors import Tensors, natural
from seed_jax.models.lora import LoraSpec

# What is trained whole beside the adapters (spec D.1): peft replaces the base model's by the copies in the file.
SAVED_MODULES = ("embed_tokens", "lm_head", *NORMS, "norm")


def write_adapter(directory: Path, source: LlamaSource, dtype: np.dtype, base: str | None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into an empty folder.

    Args:
        source: a model whose adapters are apart.
        base: name or path of the base model, for the config.
    """
    tensors = adapter_tensors(source)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    read = ((name, tensors[name].read()) for name in sorted(tensors, key=natural))
    write_safetensors(directory / "adapter_model.safetensors", shapes, dtype, read)
    write_json(directory / "adapter_config.json", adapter_config(source.spec, base))


def adapter_tensors(source: LlamaSource) -> Tensors:
    """Return the low-rank matrices, and embeddings, head and norms, under peft's names."""
    flat = flatten_dict(source.params, sep="/")
    saved = [entry for entry in replaced_table(source.config) if entry.path.split("/")[-2] in SAVED_MODULES]
    whole = unflatten_dict({entry.path: flat[entry.path] for entry in saved}, sep="/")
    low_rank = open_ours(adapter_table(source.config, source.spec), source.adapters, "the adapters")
    return low_rank.merged(open_ours(saved, whole, "the model"))


def adapter_config(spec: LoraSpec, base: str | None) -> dict[str, Any]:
    """Return the content of `adapter_config.json`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": list(spec.targets),
        "modules_to_save": list(SAVED_MODULES),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
