"""LoRA adapters in peft's format: low-rank matrices, and full copies of modules that were trained beside them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.convert.key_table import LINEAR, Entry, assemble, expected_shapes, to_torch_tensors
from seed_jax.convert.llama.key_table import NORMS, PROJECTIONS, abstract_params, key_table
from seed_jax.convert.llama.source import LlamaSource
from seed_jax.convert.merging import cast_params, merge_lora
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import TensorDict, check_tensors, open_tensors
from seed_jax.errors import UserError
from seed_jax.files import read_json, write_json
from seed_jax.models.config_io import MAX_SIZE
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.nn import lora
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import as_dtype
from seed_jax.typing import ParamPath, Tree

PREFIX = "base_model.model."
# Modules that are trained in full beside the adapters (spec D.1): peft's copies replace those of the base model.
SAVED_MODULES = ("embed_tokens", "lm_head", *NORMS, "norm")
_ADAPTED = re.compile(r".*\.(\w+)\.lora_[AB]\.weight")
_VOCABULARY = tuple(f"{PREFIX}{name}.weight" for name in ("model.embed_tokens", "lm_head"))
_READ_FIELDS = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora"}
# Fields that do not change what the saved adapter computes, or whose effect the names of the tensors show.
_FIELDS_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "base_model_name_or_path", "peft_version", "revision", "inference_mode",
    "exclude_modules", "modules_to_save", "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config",
    "eva_config",
}  # fmt: skip
# Fields that select a variant of LoRA, and their values for plain LoRA. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change
# the base model's weights when they initialise the adapter; the other initialisations do not.
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


@dataclasses.dataclass(frozen=True)
class ImportedAdapter:
    """An adapter for a LLaMA.

    Args:
        config: of base and adapter together: the adapter's embeddings and head may have more tokens.
        adapters: the LoRA collection, NumPy arrays.
        replaced: the parameters (embeddings, head, norms) that replace those of the base model.
    """

    config: LlamaConfig
    spec: LoraSpec
    adapters: Tree
    replaced: Tree

    def replace_params(self, params: Tree) -> Tree:
        """Return `params` with the adapter's embeddings, head and norms; the low-rank matrices stay separate."""
        return unflatten_dict({**flatten_dict(params), **flatten_dict(self.replaced)})

    def merge(self, params: Tree, dtype: str | None = None) -> Tree:
        """Merge the adapter into a base model.

        Args:
            params: of the base model, arrays or lazy arrays.
            dtype: of the result, cast from float32 sums; default: the dtypes of `params`.

        Returns:
            A tree of lazy arrays.
        """
        flat: dict[ParamPath, Any] = flatten_dict(params)
        dtypes = {path: as_dtype(dtype) if dtype else np.dtype(leaf.dtype) for path, leaf in flat.items()}
        return cast_params(merge_lora(self.replace_params(params), self.adapters, self.spec), dtypes)


def adapter_table(config: LlamaConfig, spec: LoraSpec) -> list[Entry]:
    """Return an entry for each low-rank matrix; peft's A is (rank, in) and B (out, rank), ours are transposed."""
    layers = range(config.num_layers)
    return [
        Entry(f"layers/{path}/{leaf}", f"{PREFIX}model.layers.{{}}.{name}.lora_{leaf.upper()}.weight", LINEAR, layers)
        for path, name in PROJECTIONS.items()
        if path.split("/")[-1] in spec.targets
        for leaf in ("a", "b")
    ]


def replaced_table(config: LlamaConfig) -> list[Entry]:
    """Return the base model's entries under the names of peft's full copies (`modules_to_save`)."""
    return [dataclasses.replace(entry, name=PREFIX + entry.name) for entry in key_table(config)]


def import_adapter(directory: str | Path, config: LlamaConfig) -> ImportedAdapter:
    """Read `adapter_config.json` and `adapter_model.safetensors` or `.bin`.

        base = open_llama("base_hf")
        adapter = import_adapter("adapter_hf", base.config)
        params = adapter.merge(base.params)  # of adapter.config

    Args:
        directory: written by peft's `save_pretrained`.
        config: of the base model.

    Raises:
        UserError: it is not a plain LoRA adapter, or not one for this base model.
    """
    directory = Path(directory)
    names = [name for name in ("adapter_model.safetensors", "adapter_model.bin") if (directory / name).is_file()]
    if not names:
        raise UserError(f"{directory} has neither adapter_model.safetensors nor adapter_model.bin: give a peft folder.")
    config_path = directory / "adapter_config.json"
    tensors = open_tensors(directory / names[0])
    spec = read_spec(config_path, tensors)
    config = _with_adapter_vocabulary(config, tensors)
    low_rank_entries = adapter_table(config, spec)
    # One tensor of a stack requires the others: a copy for some layers only is an error.
    replaced_entries = [entry for entry in replaced_table(config) if any(name in tensors for name in entry.names)]
    abstract = abstract_params(config)
    replaced = _select(abstract, replaced_entries)
    low_rank = jax.eval_shape(lambda params: lora.init(params, spec, jax.random.key(0)), abstract)
    expected = {**expected_shapes(low_rank_entries, low_rank), **expected_shapes(replaced_entries, replaced)}
    try:
        check_tensors(expected, tensors)
    except UserError as error:
        base = read_json(config_path).get("base_model_name_or_path")
        named = f" (its config names {base!r})" if base else ""
        raise UserError(
            f"{directory} is an adapter for another base model{named} or of other settings: {error}"
        ) from error
    adapters = assemble(low_rank_entries, tensors, low_rank)
    return ImportedAdapter(config, spec, adapters, assemble(replaced_entries, tensors, replaced))


def _select(params: Tree, entries: list[Entry]) -> Tree:
    """Return the part of a tree that these entries cover."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({entry.path: flat[entry.path] for entry in entries}, sep="/")


def _with_adapter_vocabulary(config: LlamaConfig, tensors: TensorDict) -> LlamaConfig:
    """Return the config with the adapter's vocabulary size, where it replaces both embeddings and head."""
    sizes = {tensors[name].shape[0] for name in _VOCABULARY if name in tensors}
    both = all(name in tensors for name in _VOCABULARY)
    return dataclasses.replace(config, vocab_size=sizes.pop()) if both and len(sizes) == 1 else config


def read_spec(path: Path, tensors: TensorDict) -> LoraSpec:
    """Read rank, alpha, dropout and targets from `adapter_config.json`.

    Args:
        tensors: of the adapter, whose names give the targets where the config has a pattern instead of a list.

    Raises:
        UserError: a field selects a variant of LoRA that is not implemented, or is unknown.
    """
    content = read_json(path, "give a folder that peft's save_pretrained wrote")
    missing = sorted({"r", "lora_alpha", "target_modules"} - content.keys())
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not the config of a LoRA adapter.")
    for name, value in content.items():
        if name in _READ_FIELDS or name in _FIELDS_WITHOUT_EFFECT:
            continue
        if value not in (None, False, {}, []) and value not in _PLAIN_VALUES.get(name, ()):
            raise UserError(
                f"{path} has {name} {value!r}, which changes the base model or the forward pass: only plain LoRA is "
                "supported; merge the adapter with peft (merge_and_unload) and import the result."
            )
    names = content["target_modules"]
    if names is not None and not isinstance(names, str) and not _is_list_of_names(names):
        raise UserError(f"{path} has target_modules {names!r}, expected a list of module names or a pattern.")
    if isinstance(names, str) or not names:
        names = [match[1] for match in map(_ADAPTED.fullmatch, tensors) if match]
    names = {name.rpartition(".")[2] for name in names}  # "all-linear" is saved as full module paths
    unsupported = sorted(names - set(lora.TARGETS))
    if unsupported:
        raise UserError(
            f"{path.parent} adapts {', '.join(unsupported)}; only {', '.join(lora.TARGETS)} can be adapted."
        )
    rank, alpha, dropout = content["r"], content["lora_alpha"], content.get("lora_dropout") or 0.0
    if type(rank) is not int or not 1 <= rank <= MAX_SIZE:
        raise UserError(f"{path} has r {rank!r}, expected a positive integer of at most {MAX_SIZE}.")
    if not isinstance(alpha, (int, float)) or not abs(alpha) <= MAX_SIZE:  # written so that NaN is refused
        raise UserError(f"{path} has lora_alpha {alpha!r}, expected a number of at most {MAX_SIZE}.")
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UserError(f"{path} has lora_dropout {dropout!r}, expected a probability below 1.")
    if content.get("use_rslora"):  # rank-stabilized LoRA scales by alpha / sqrt(rank)
        alpha *= rank**0.5
    targets = tuple(name for name in lora.TARGETS if name in names)
    return LoraSpec(rank, float(alpha), float(dropout), targets)


def _is_list_of_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def write_adapter(directory: Path, source: LlamaSource, dtype: np.dtype, base: str | None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into an empty folder.

    Args:
        source: a model with separate adapters.
        base: name or path of the base model, for the config.
    """
    write_lazy_tensors(directory / "adapter_model.safetensors", adapter_tensors(source), dtype)
    write_json(directory / "adapter_config.json", adapter_config(_spec(source), base))


def adapter_tensors(source: LlamaSource) -> TensorDict:
    """Return the low-rank matrices, embeddings, head and norms under peft's names."""
    saved = [entry for entry in replaced_table(source.config) if entry.path.split("/")[-2] in SAVED_MODULES]
    low_rank = to_torch_tensors(adapter_table(source.config, _spec(source)), source.adapters, "the adapters")
    return low_rank.merged(to_torch_tensors(saved, _select(source.params, saved), "the model"))


def _spec(source: LlamaSource) -> LoraSpec:
    if source.spec is None:
        raise ValueError("the model has no separate adapters")
    return source.spec


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
