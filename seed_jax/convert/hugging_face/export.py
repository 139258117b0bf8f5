"""Export a language model as a directory that transformers loads, or its adapters for peft, one tensor at a time."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seed_jax.convert.hugging_face.layout import HuggingFaceLayout
from seed_jax.convert.hugging_face.peft import write_adapter
from seed_jax.convert.hugging_face.source import LanguageModelSource
from seed_jax.convert.key_table import Entry, select_params, to_torch_tensors
from seed_jax.convert.model_card.card import write_export_card
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.sharded_writer import MAX_SHARD_SIZE, write_weights
from seed_jax.convert.tensors import TensorDict
from seed_jax.errors import UserError
from seed_jax.files import new_directory, write_json
from seed_jax.precision import as_dtype

Form = Literal["merged", "peft", "adapter"]
BASE, ADAPTER = "base", "adapter"  # subfolders of the form "peft"
# How the model card says that an export is loaded.
_LOAD = {
    "merged": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")',
    "peft": "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("base")\nmodel = PeftModel.from_pretrained(base, "adapter")',
    "adapter": "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("BASE_MODEL")\nmodel = PeftModel.from_pretrained(base, ".")',
}
# Arguments of `seed-jax import` that convert an export back.
_IMPORT = {
    "merged": "{kind} --from {name}",
    "peft": f"{{kind}} --from {{name}}/{BASE} --adapter {{name}}/{ADAPTER}",
    "adapter": "{kind} --from BASE_MODEL --adapter {name}",
}


def export_language_model(
    layout: HuggingFaceLayout,
    model: str | Path,
    out: str | Path,
    *,
    form: Form = "merged",
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    base: str | None = None,
) -> None:
    """Export a language model for PyTorch's transformers and peft.

    Args:
        layout: of the model's architecture.
        model: model directory or training workdir.
        out: directory to write, atomically; must be missing or empty.
        form: "merged" writes one model with the adapters merged in; "peft" the base model in `out/base` and a peft
            adapter in `out/adapter`; "adapter" the peft adapter alone.
        dtype: float32, bfloat16 or float16; default: the widest of what is stored.
        max_shard_size: bytes per weight file; a single larger tensor gets a file of its own.
        base: what the adapter's config names as its base model; default: `out/base` for the form "peft".

    Raises:
        UserError: there are no separate adapters to export, or `dtype` cannot represent a value.
    """
    source = LanguageModelSource.open(layout, model)
    target = as_dtype(dtype) if dtype else source.dtype
    if form != "merged" and source.spec is None:
        raise UserError(f"{model} holds no adapters separate from the model: export it --merged.")
    with new_directory(out) as folder:
        if form == "peft":
            (folder / BASE).mkdir()
            (folder / ADAPTER).mkdir()
            write_model(folder / BASE, source, source.params, target, max_shard_size)
            write_adapter(folder / ADAPTER, source, target, base or str(Path(out) / BASE))
        elif form == "adapter":
            write_adapter(folder, source, target, base)
            write_beside(folder, source, source.params, target)
        else:
            write_model(folder, source, source.merged_params(), target, max_shard_size)
        write_export_card(
            folder,
            model,
            title=layout.title,
            library="transformers" if form == "merged" else "peft",
            pipeline="text-generation",
            load=_LOAD[form],
            import_arguments=_IMPORT[form].format(kind=layout.kind, name=Path(out).name),
            script=layout.has_script and form == "merged",
        )
    if not source.files:
        logging.warning("%s has no text tokenizer: copy its files into %s.", model, out)


def write_model(
    directory: Path, source: LanguageModelSource, params: Mapping[str, Any], dtype: np.dtype, max_shard_size: int
) -> None:
    """Write weights, configs and tokenizer files into an empty folder, without the vocabulary's padding rows.

    Args:
        directory: the folder.
        source: the model.
        params: of `source`, with or without its adapters merged in.
        dtype: to store.
        max_shard_size: in bytes.
    """
    layout, config = source.layout, source.config

    write_weights(directory, _tensors(layout.key_table(config), params), dtype, max_shard_size)
    write_beside(directory, source, params, dtype)
    write_json(directory / "config.json", layout.hf_config(config, dtype))
    write_json(directory / "generation_config.json", dict(layout.token_ids))
    if source.files:
        layout.write_text_tokenizer(directory, source.files)


def write_beside(directory: Path, source: LanguageModelSource, params: Mapping[str, Any], dtype: np.dtype) -> None:
    """Write the file of what Hugging Face's class has no module for, if there is something."""
    if beside := source.layout.beside(source.config):
        name, entries = beside
        write_lazy_tensors(directory / name, _tensors(entries, params), dtype)


def _tensors(entries: list[Entry], params: Mapping[str, Any]) -> TensorDict:
    return to_torch_tensors(entries, select_params(entries, params), "the model")
