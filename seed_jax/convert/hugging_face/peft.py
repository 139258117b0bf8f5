"""LoRA adapters in peft's format: low-rank matrices, and full copies of modules that were trained beside them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.convert.hugging_face.layout import HuggingFaceLayout
from seed_jax.convert.hugging_face.source import LanguageModelSource
from seed_jax.convert.key_table import LINEAR, Entry, assemble, expected_shapes, select_params, to_torch_tensors
from seed_jax.convert.merging import cast_params, merge_lora
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import TensorDict, check_tensors, open_tensors
from seed_jax.errors import UserError
from seed_jax.files import read_json, write_json
from seed_jax.models.config_io import MAX_SIZE
from seed_jax.models.nn import lora
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import as_dtype
from seed_jax.typing import ParamPath, Tree

PREFIX = "base_model.model."
_ADAPTED = re.compile(r".*\.(\w+)\.lora_[AB]\.weight")
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
    """An adapter for a language model.

    Args:
        config: of base and adapter together: the adapter's embeddings and head may have more tokens.
        adapters: the LoRA collection, NumPy arrays.
        replaced: the parameters (embeddings, head, norms) that replace those of the base model.
    """

    config: DecoderOnlyConfig
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


def adapter_table(layout: HuggingFaceLayout, config: DecoderOnlyConfig, spec: LoraSpec) -> list[Entry]:
    """Return an entry for each low-rank matrix; peft's A is (rank, in) and B (out, rank), ours are transposed."""
    layers = range(config.num_layers)
    return [
        Entry(f"layers/{path}/{leaf}", f"{PREFIX}{layout.layer}.{name}.lora_{leaf.upper()}.weight", LINEAR, layers)
        for path, name in layout.projections.items()
        if path.split("/")[-1] in spec.targets
        for leaf in ("a", "b")
    ]


def replaced_table(layout: HuggingFaceLayout, config: DecoderOnlyConfig) -> list[Entry]:
    """Return the base model's entries under the names of peft's full copies (`modules_to_save`)."""
    return [dataclasses.replace(entry, name=PREFIX + entry.name) for entry in layout.key_table(config)]


def import_adapter(layout: HuggingFaceLayout, directory: str | Path, config: DecoderOnlyConfig) -> ImportedAdapter:
    """Read `adapter_config.json` and `adapter_model.safetensors` or `.bin`.

        base = open_llama("base_hf")
        adapter = import_adapter(LLAMA, "adapter_hf", base.config)
        params = adapter.merge(base.params)  # of adapter.config

    Args:
        layout: of the architecture.
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
    spec = read_spec(config_path, tensors, layout.lora_targets)
    tensors = _without_tied_head(layout, tensors)
    config = _with_adapter_vocabulary(layout, config, tensors)
    low_rank_entries = adapter_table(layout, config, spec)
    # One tensor of a stack requires the others: a copy for some layers only is an error.
    replaced_entries = [
        entry for entry in replaced_table(layout, config) if any(name in tensors for name in entry.names)
    ]
    abstract = layout.abstract_params(config)
    replaced = select_params(replaced_entries, abstract)
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


def _with_adapter_vocabulary(
    layout: HuggingFaceLayout, config: DecoderOnlyConfig, tensors: TensorDict
) -> DecoderOnlyConfig:
    """Return the config with the adapter's vocabulary size, where it replaces all weights with a row per token."""
    names = [f"{PREFIX}{name}.weight" for name in layout.vocabulary]
    sizes = {tensors[name].shape[0] for name in names if name in tensors}
    complete = all(name in tensors for name in names)
    sizes_of_model: Any = config  # a dataclass, as every model's config is
    return dataclasses.replace(sizes_of_model, vocab_size=sizes.pop()) if complete and len(sizes) == 1 else config


def _without_tied_head(layout: HuggingFaceLayout, tensors: TensorDict) -> TensorDict:
    """Drop the copy of a head that is tied to the embeddings.

    Raises:
        UserError: the head differs from the embeddings.
    """
    head, (embedding, *others) = f"{PREFIX}lm_head.weight", (f"{PREFIX}{name}.weight" for name in layout.vocabulary)
    if others or head not in tensors:
        return tensors
    if embedding not in tensors or not np.array_equal(tensors[head].read(), tensors[embedding].read()):
        raise UserError(
            f"{tensors.source} replaces lm_head by other weights than embed_tokens, but the model's head is tied to "
            "its embeddings: train with both tied, or without lm_head in modules_to_save."
        )
    return TensorDict({name: tensor for name, tensor in tensors.items() if name != head}, tensors.source)


def read_spec(path: Path, tensors: TensorDict, lora_targets: tuple[str, ...]) -> LoraSpec:
    """Read rank, alpha, dropout and targets from `adapter_config.json`.

    Args:
        path: the file.
        tensors: of the adapter, whose names give the targets where the config has a pattern instead of a list.
        lora_targets: projections of the model that adapters may adapt.

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
    unsupported = sorted(names - set(lora_targets))
    if unsupported:
        raise UserError(
            f"{path.parent} adapts {', '.join(unsupported)}; only {', '.join(lora_targets)} can be adapted."
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
    targets = tuple(name for name in lora_targets if name in names)
    return LoraSpec(targets, rank, float(alpha), float(dropout))


def _is_list_of_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def write_adapter(directory: Path, source: LanguageModelSource, dtype: np.dtype, base: str | None) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into an empty folder.

    Args:
        source: a model with separate adapters.
        base: name or path of the base model, for the config.
    """
    write_lazy_tensors(directory / "adapter_model.safetensors", adapter_tensors(source), dtype)
    write_json(directory / "adapter_config.json", adapter_config(source.layout, _spec(source), base))


def adapter_tensors(source: LanguageModelSource) -> TensorDict:
    """Return the low-rank matrices, embeddings, head and norms under peft's names."""
    layout, config = source.layout, source.config
    saved = [entry for entry in replaced_table(layout, config) if entry.path.split("/")[-2] in layout.saved_modules]
    low_rank = to_torch_tensors(adapter_table(layout, config, _spec(source)), source.adapters, "the adapters")
    tensors = low_rank.merged(to_torch_tensors(saved, select_params(saved, source.params), "the model"))
    if len(layout.vocabulary) == 1:  # peft's copy of the embeddings would leave a tied head as it was
        head = {f"{PREFIX}lm_head.weight": tensors[f"{PREFIX}{layout.vocabulary[0]}.weight"]}
        tensors = TensorDict({**tensors, **head}, tensors.source)
    return tensors


def _spec(source: LanguageModelSource) -> LoraSpec:
    if source.spec is None:
        raise ValueError("the model has no separate adapters")
    return source.spec


def adapter_config(layout: HuggingFaceLayout, spec: LoraSpec, base: str | None) -> dict[str, Any]:
    """Return the content of `adapter_config.json`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": list(spec.targets),
        "modules_to_save": list(layout.saved_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
