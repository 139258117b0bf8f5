"""Language models on disk, and the image tokenizer, decoder and prompt style that belong to them.

`config.json` of a model directory (or of the `model/` folder of a training workdir) may name what belongs to the model,
with paths relative to the folder that holds the file:

    "prompt_style"      "vicuna", "llama2", "base" or "seed1"
    "image_tokenizer"   model directory of the image tokenizer, or null
    "decoder"           model directory of the image decoder, or null

A bundle is a directory whose `config.json` has the kind "seed_llama" and only refers to other directories: the keys
above and "language_model". What a bundle does not name is taken from the language model's own `config.json`.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import DECODERS, LANGUAGE_MODELS, ModelKind
from seed_jax.checkpoint.lazy import LazyArray
from seed_jax.convert.merging import merge_lora
from seed_jax.convert.model_card.card import write_bundle_card
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.files import is_path, read_json, write_json
from seed_jax.models.language_models import model_class, read_sizes
from seed_jax.models.nn import lora
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.typing import Tree

PROMPT_STYLE = "prompt_style"
IMAGE_TOKENIZER = "image_tokenizer"
DECODER = "decoder"
LANGUAGE_MODEL = "language_model"
DRAFT_CODES = "draft_codes.json"


@dataclasses.dataclass(frozen=True)
class ModelReferences:
    """The directories and the prompt style of a SEED-LLaMA.

    Attributes:
        language_model: model directory or training workdir.
        image_tokenizer: model directory, if one is named.
        decoder: model directory, if one is named.
        prompt_style: "vicuna", "llama2", "base" or "seed1", if one is named.
    """

    language_model: Path
    image_tokenizer: Path | None = None
    decoder: Path | None = None
    prompt_style: str | None = None


def read_references(directory: str | Path) -> ModelReferences:
    """Read what belongs to a language model from its `config.json`, or from that of a bundle.

    Raises:
        UserError: the directory holds neither a language model nor a bundle, or a value is not a string.
    """
    folder, config = model_dir.read_config(directory)
    where = str(folder / model_dir.CONFIG)
    named = {key: _path(folder, config, key, where) for key in (IMAGE_TOKENIZER, DECODER)}
    style = _string(config, PROMPT_STYLE, where)
    if config["kind"] != ModelKind.SEED_LLAMA:
        model_dir.read_config(directory, LANGUAGE_MODELS)  # refuse other kinds
        return ModelReferences(Path(directory), named[IMAGE_TOKENIZER], named[DECODER], style)
    language_model = _path(folder, config, LANGUAGE_MODEL, where)
    if language_model is None:
        raise UserError(f"{where} has no {LANGUAGE_MODEL!r}: a bundle names the directory of its language model.")
    model_dir.read_config(language_model, LANGUAGE_MODELS)  # refuse a bundle inside a bundle
    inner = read_references(language_model)
    return ModelReferences(
        language_model=inner.language_model,
        image_tokenizer=named[IMAGE_TOKENIZER] or inner.image_tokenizer,
        decoder=named[DECODER] or inner.decoder,
        prompt_style=style or inner.prompt_style,
    )


def write_bundle(
    directory: str | Path,
    *,
    language_model: str | Path,
    image_tokenizer: str | Path | None = None,
    decoder: str | Path | None = None,
    prompt_style: str | None = None,
) -> None:
    """Write the `config.json` of a bundle: after it every command needs `--model DIRECTORY` alone.

        write_bundle("runs/mine", language_model="runs/mine/sft", image_tokenizer="runs/mine/codebook")

    Args:
        directory: of the bundle; paths are stored relative to it.
        language_model: model directory or training workdir.
        image_tokenizer: model directory or training workdir; by default what the language model names.
        decoder: model directory or training workdir; by default what the language model names.
        prompt_style: "vicuna", "llama2", "base" or "seed1"; by default what the language model names.

    Raises:
        UserError: a directory does not hold a model of its kind.
    """
    directory = Path(directory)
    config: dict[str, Any] = {"kind": ModelKind.SEED_LLAMA, "format": model_dir.FORMAT}
    parts = {
        LANGUAGE_MODEL: (language_model, LANGUAGE_MODELS),
        IMAGE_TOKENIZER: (image_tokenizer, (ModelKind.IMAGE_TOKENIZER,)),
        DECODER: (decoder, DECODERS),
    }
    for key, (path, kinds) in parts.items():
        if path is not None:
            model_dir.read_config(path, kinds)
            config[key] = os.path.relpath(Path(path).resolve(), directory.resolve())
    if prompt_style is not None:
        config[PROMPT_STYLE] = prompt_style
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / model_dir.CONFIG, config)
    update_bundle_card(directory)


def update_bundle_card(directory: str | Path) -> None:
    """Write the model card of a bundle again, such as after an evaluation."""
    references = read_references(directory)
    parts = (references.language_model, references.image_tokenizer, references.decoder)
    write_bundle_card(Path(directory), [part for part in parts if part is not None])


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model as read from disk.

    Attributes:
        config: sizes.
        params: parameters with stacked layers, adapters merged.
        vocabulary: the model's vocabulary.
        references: what belongs to the model.
    """

    config: DecoderOnlyConfig
    params: Tree
    vocabulary: Vocabulary
    references: ModelReferences


def load_language_model(directory: str | Path, dtype: str | None = None) -> LanguageModel:
    """Read a language model into memory.

    Args:
        directory: model directory, bundle or training workdir.
        dtype: dtype of the parameters; by default as stored.
    """
    references = read_references(directory)
    return _language_model(model_dir.load(references.language_model, LANGUAGE_MODELS, dtype=dtype), references)


def open_language_model(directory: str | Path) -> LanguageModel:
    """Open a language model whose parameters stay on disk until they are used (`checkpoint.lazy`)."""
    references = read_references(directory)
    return _language_model(model_dir.open_lazily(references.language_model, LANGUAGE_MODELS), references)


def read_draft_codes(directory: str | Path, file: str | Path | None = None) -> list[int] | None:
    """Return the first draft of parallel decoding, as `seed-jax data draft-codes` writes it.

    Args:
        directory: model directory or training workdir of a language model.
        file: the file; by default `draft_codes.json` beside its config.json, if there is one.

    Raises:
        UserError: the file is missing or of another kind.
    """
    path = Path(file) if file is not None else model_dir.read_config(directory)[0] / DRAFT_CODES
    if file is None and not path.is_file():
        return None
    codes = read_json(path, "make it with `seed-jax data draft-codes`").get("draft_codes")
    if not isinstance(codes, list):
        raise UserError(f'{path} has no list "draft_codes": make it with `seed-jax data draft-codes`.')
    return codes


def _language_model(loaded: model_dir.ModelDir, references: ModelReferences) -> LanguageModel:
    where = str(loaded.directory / model_dir.CONFIG)
    missing = sorted({"sizes", IMAGE_TOKENIZER} - loaded.config.keys())
    if missing:
        raise UserError(f"{where} lacks {' and '.join(missing)}: import the model again.")
    sizes = read_sizes(loaded.kind, loaded.config["sizes"], where)
    return LanguageModel(
        config=sizes,
        params=_merged_params(loaded.params, model_class(sizes).lora_targets, loaded.config.get("lora"), where),
        vocabulary=Vocabulary.load(loaded.directory),
        references=references,
    )


def _merged_params(tree: Tree, targets: tuple[str, ...], spec: dict[str, Any] | None, where: str) -> Tree:
    """Return a model directory's parameters as they are; merge the collections of a checkpoint."""
    if "params" not in tree:
        return tree
    adapters = tree.get("lora")
    if not adapters:
        return tree["params"]
    if not spec:
        raise UserError(f"{where} has no 'lora', which gives the scale of the checkpoint's adapters: restore it.")
    merge = merge_lora if any(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(tree["params"])) else lora.merge
    return merge(tree["params"], adapters, lora.read_spec(spec, where, targets))


def _path(folder: Path, config: dict[str, Any], key: str, where: str) -> Path | None:
    relative = _string(config, key, where)
    if relative is not None and not is_path(relative):
        raise UserError(f"{where}: {key!r} is {relative!r}, which is no path.")
    return None if relative is None else (folder / relative).resolve()


def _string(config: dict[str, Any], key: str, where: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {key!r} is {value!r}, expected a string or null.")
    return value
