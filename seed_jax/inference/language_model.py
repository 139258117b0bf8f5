"""A language model as it lies on disk: a model directory, or the newest checkpoint of a training workdir."""

import dataclasses
from pathlib import Path
from typing import Any

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.lazy import LazyArray
from seed_jax.convert.merging import merged
from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError
from seed_jax.models import lora
from seed_jax.models.llama import LlamaConfig
from seed_jax.models.lora import LoraSpec

KIND = "llama"  # of its model directory


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Sizes, parameters (adapters merged), vocabulary, and where the image tokenizer lies that its codes come from."""

    config: LlamaConfig
    params: dict[str, Any]
    vocabulary: Vocabulary
    image_tokenizer: Path | None


def load_language_model(directory: str | Path, dtype: str | None = None) -> LanguageModel:
    """Read a language model.

    Args:
        dtype: number format of the parameters; by default as stored.
    """
    return _language_model(model_dir.load(directory, KIND, dtype=dtype))


def open_language_model(directory: str | Path) -> LanguageModel:
    """Read a language model whose parameters stay on disk until they are used (`checkpoint.lazy`)."""
    return _language_model(model_dir.open_lazily(directory, KIND))


def _language_model(found: model_dir.ModelDir) -> LanguageModel:
    where = str(found.directory / model_dir.CONFIG)
    missing = sorted({"sizes", "image_tokenizer"} - found.config.keys())
    if missing:
        raise UserError(f"{where} lacks {' and '.join(missing)}: import the model again.")
    relative = found.config["image_tokenizer"]
    return LanguageModel(
        config=LlamaConfig.from_dict(found.config["sizes"], where),
        params=_merged(found.params, found.config.get("lora"), where),
        vocabulary=Vocabulary.load(found.directory),
        image_tokenizer=None if relative is None else (found.directory / relative).resolve(),
    )


def _merged(tree: dict[str, Any], spec: dict[str, Any] | None, where: str) -> dict[str, Any]:
    """Take a model directory's parameters as they are; merge the collections that a checkpoint has."""
    if "params" not in tree:
        return tree
    adapters = tree.get("lora")
    if adapters and not spec:
        raise UserError(f"{where} does not say how the checkpoint's adapters are scaled: it has no 'lora'.")
    if not adapters:
        return tree["params"]
    merge = merged if isinstance(tree["params"]["norm"]["scale"], LazyArray) else lora.merge
    return merge(tree["params"], adapters, LoraSpec(**spec))
