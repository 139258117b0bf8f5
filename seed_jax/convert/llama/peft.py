"""Read LoRA adapters as peft saves them: low-rank matrices, and whole copies of what was trained beside them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.convert.key_table import MATRIX, Entry, assemble, expected_shapes, open_ours
from seed_jax.convert.llama.hf_import import read_json
from seed_jax.convert.llama.key_table import NORMS, PROJECTIONS, abstract_params, key_table
from seed_jax.convert.llama.source import LlamaSource
from seed_jax.convert.merging import converted, merged
from seed_jax.convert.safetensors_writer import write_safetensors
from seed_jax.convert.tensors import Tensors, check, natural, open_tensors
from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.nn import lora
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import as_dtype

PREFIX = "base_model.model."
_ADAPTED = re.compile(r".*\.(\w+)\.lora_[AB]\.weight")
_VOCABULARY = tuple(f"{PREFIX}{name}.weight" for name in ("model.embed_tokens", "lm_head"))
# Settings that would change the computation, and the values that mean "not used".
_UNUSED = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_rslora": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layers_to_transform": (None,),
}


@dataclasses.dataclass(frozen=True)
class ImportedAdapter:
    """Adapters for a LLaMA, and the parameters (embeddings, head, norms) that replace its own."""

    config: LlamaConfig  # of base and adapter together: replaced embeddings and head may have more tokens
    spec: LoraSpec
    adapters: dict[str, Any]
    replaced: dict[str, Any]

    def adapt(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return `params` with the replaced ones; the adapters stay apart, for the collection `lora`."""
        return unflatten_dict({**flatten_dict(params), **flatten_dict(self.replaced)})

    def merge(self, params: dict[str, Any], dtype: str | None = None) -> dict[str, Any]:
        """Return the parameters of the one model that base and adapters make together: lazy arrays.

        Args:
            dtype: number format to round the sums, which are float32, to; by default those of `params`.
        """
        formats = {p: as_dtype(dtype) if dtype else np.dtype(leaf.dtype) for p, leaf in flatten_dict(params).items()}
        return converted(merged(self.adapt(params), self.adapters, self.spec), formats)


def adapter_table(config: LlamaConfig, spec: LoraSpec) -> list[Entry]:
    """Return an entry for each low-rank matrix; peft's A is (rank, in) and B (out, rank), ours are transposed."""
    layers = range(config.num_layers)
    return [
        Entry(f"layers/{ours}/{leaf}", f"{PREFIX}model.layers.{{}}.{theirs}.lora_{leaf.upper()}.weight", MATRIX, layers)
        for ours, theirs in PROJECTIONS.items()
        if ours.split("/")[-1] in spec.targets
        for leaf in ("a", "b")
    ]


def replaced_table(config: LlamaConfig) -> list[Entry]:
    """Return the base model's entries under the names of peft's whole copies (`modules_to_save`)."""
    return [dataclasses.replace(entry, name=PREFIX + entry.name) for entry in key_table(config)]


def import_adapter(directory: str | Path, config: LlamaConfig) -> ImportedAdapter:
    """Read `adapter_config.json` and `adapter_model.safetensors` or `.bin` for a base model of these sizes."""
    directory = Path(directory)
    names = [name for name in ("adapter_model.safetensors", "adapter_model.bin") if (directory / name).is_file()]
    if not names:
        raise UserError(f"{directory} has neither adapter_model.safetensors nor adapter_model.bin: give a peft folder.")
    path, tensors = directory / "adapter_config.json", open_tensors(directory / names[0])
    spec, config = read_spec(path, tensors), _grown(config, tensors)
    adapters, whole = adapter_table(config, spec), abstract_params(config)
    # Any one tensor of a stack demands the others: a copy for some layers only is an error.
    replaced = [entry for entry in replaced_table(config) if any(name in tensors for name in entry.names)]
    flat = flatten_dict(whole, sep="/")
    partial = unflatten_dict({entry.path: flat[entry.path] for entry in replaced}, sep="/")
    low_rank = jax.eval_shape(lambda params: lora.init(params, spec, jax.random.key(0)), whole)
    try:
        check({**expected_shapes(adapters, low_rank), **expected_shapes(replaced, partial)}, tensors)
    except UserError as error:
        base = read_json(path).get("base_model_name_or_path")
        named = f" (its config names {base!r})" if base else ""
        raise UserError(
            f"{directory} is an adapter for another base model{named} or of other settings: {error}"
        ) from error
    return ImportedAdapter(config, spec, assemble(adapters, tensors, low_rank), assemble(replaced, tensors, partial))


def _grown(config: LlamaConfig, tensors: Tensors) -> LlamaConfig:
    """Return the sizes with the adapter's own vocabulary, where it replaces both embeddings and head."""
    rows = {tensors[name].shape[0] for name in _VOCABULARY if name in tensors}
    both = all(name in tensors for name in _VOCABULARY)
    return dataclasses.replace(config, vocab_size=rows.pop()) if both and len(rows) == 1 else config


def read_spec(path: Path, tensors: Tensors) -> LoraSpec:
    """Read rank, alpha, dropout and targets; UserError for a kind of adapter other than plain LoRA.

    Args:
        tensors: of the adapter, whose names tell the targets where the config has a pattern instead of a list.
    """
    found = read_json(path)
    missing = sorted({"r", "lora_alpha", "target_modules"} - found.keys())
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not the config of a LoRA adapter.")
    for name, values in _UNUSED.items():
        if found.get(name) is not None and found[name] not in values:
            raise UserError(f"{path} has {name} {found[name]!r}; only {values[0]!r} is supported.")
    names = found["target_modules"]
    if isinstance(names, str):
        names = [match[1] for match in map(_ADAPTED.fullmatch, tensors) if match]
    foreign = sorted(set(names) - set(lora.TARGETS))
    if foreign:
        raise UserError(f"{path.parent} adapts {', '.join(foreign)}; only {', '.join(lora.TARGETS)} can be adapted.")
    targets = tuple(name for name in lora.TARGETS if name in names)
    return LoraSpec(found["r"], float(found["lora_alpha"]), float(found.get("lora_dropout", 0.0)), targets)


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
