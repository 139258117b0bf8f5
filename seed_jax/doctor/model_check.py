"""Check whether a model directory is complete, and which of its files are damaged."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import LANGUAGE_MODELS, ModelKind
from seed_jax.checkpoint.verify import verify
from seed_jax.convert.diffusion import diffusers_import, stable_diffusion
from seed_jax.convert.llama import key_table as llama
from seed_jax.convert.opt import key_table as opt
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.language_model import read_references
from seed_jax.inference.memory_plan import tree_bytes
from seed_jax.lfs import lfs_pointer
from seed_jax.models.diffusion import DECODERS, StableDiffusionConfig, UnclipConfig
from seed_jax.models.language_models import read_sizes
from seed_jax.models.tokenizer import seed_tokenizer
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong with a file or a tensor.

    Attributes:
        path: the file or directory.
        problem: a sentence with the remedy.
    """

    path: str
    problem: str


@dataclasses.dataclass(frozen=True)
class ModelCheck:
    """A model directory and what is wrong with it.

    Attributes:
        directory: as given, or as a bundle names it.
        kind: of the model; None where that cannot be read.
        tensors: number of its parameters.
        bytes: their size.
        findings: what is missing or damaged; empty for a complete directory.
    """

    directory: str
    kind: str | None
    tensors: int
    bytes: int
    findings: tuple[Finding, ...]


def check_model(directory: str | Path) -> list[ModelCheck]:
    """Check a model directory, a training workdir, or a bundle with all that it names; every file is read.

    Returns:
        One result per model directory, the bundle's own first.
    """
    directory = Path(directory)
    try:
        _, config = model_dir.read_config(directory)
    except UserError as error:
        return [ModelCheck(str(directory), None, 0, 0, (Finding(str(directory), str(error)), *_pointers(directory)))]
    if config["kind"] != ModelKind.SEED_LLAMA:
        return [_check_one(directory)]
    try:
        references = read_references(directory)
    except UserError as error:
        return [ModelCheck(str(directory), config["kind"], 0, 0, (Finding(str(directory), str(error)),))]
    parts = [references.language_model, references.image_tokenizer, references.decoder]
    checks = [check for part in parts if part is not None for check in check_model(part)]
    return [ModelCheck(str(directory), config["kind"], 0, 0, ()), *checks]


def _check_one(directory: Path) -> ModelCheck:
    folder, config = model_dir.read_config(directory)
    damage = [Finding(str(directory), problem) for problem in _damage(directory)]
    findings, tensors, size = [*_pointers(directory), *damage], 0, 0
    try:
        opened = model_dir.open_lazily(directory)
        expected = _abstract_params(opened)
        if expected is not None:
            model_dir.check_tree(opened.variables["params"], expected, str(directory))
        leaves: dict[str, Any] = flatten_dict(opened.params, sep="/")
        tensors, size = len(leaves), tree_bytes(opened.params)
        if not damage:
            findings += _not_finite(model_dir.params_path(directory), leaves)
    except UserError as error:
        findings.append(Finding(str(directory), str(error)))
    findings += _check_files(folder, config)
    return ModelCheck(str(directory), config["kind"], tensors, size, tuple(findings))


def _damage(directory: Path) -> list[str]:
    try:
        return verify(directory).problems
    except UserError:  # there is nothing to read: opening the model reports what is missing
        return []


def _not_finite(path: Path, leaves: dict[str, Any]) -> Iterator[Finding]:
    for name, leaf in leaves.items():
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(leaf[...]).all():
            problem = f"the tensor {name} holds NaN or infinity: take an earlier checkpoint, or import the model again."
            yield Finding(str(path), problem)


def _check_files(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """Read the text tokenizer of a language model or decoder."""
    try:
        if config["kind"] in LANGUAGE_MODELS and (folder / "added_tokens.json").is_file():
            vocabulary, size = Vocabulary.load(folder), config.get("sizes", {}).get("vocab_size")
            if vocabulary.size != size:
                yield Finding(
                    str(folder),
                    f"the text tokenizer has {vocabulary.size} tokens but the model has {size}: copy the files of the "
                    "model's own text tokenizer.",
                )
        elif config["kind"] in LANGUAGE_MODELS:
            logging.info("%s has no image tokens: it can start a training run, but not generate.", folder)
        if config["kind"] in DECODERS and (folder / "vocab.json").is_file():
            ClipVocabulary.load(folder)
    except UserError as error:
        yield Finding(str(folder), str(error))


def _pointers(directory: Path) -> Iterator[Finding]:
    """Name the files that are Git LFS pointers."""
    for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
        if path.is_file() and lfs_pointer(path):
            yield Finding(str(path), "this is a Git LFS pointer, not the file itself: run `git lfs pull` or fetch it.")


def _abstract_params(opened: model_dir.ModelDir) -> Tree | None:
    """Return the parameters that a model of these sizes has; None for kinds whose loader checks them by itself."""
    sizes, where = opened.config.get("sizes", {}), opened.config_path
    if opened.kind == ModelKind.IMAGE_TOKENIZER:
        return seed_tokenizer.abstract_params(SeedTokenizerConfig.from_dict(sizes, where))
    if opened.kind in LANGUAGE_MODELS:
        config = read_sizes(opened.kind, sizes, where)
        return (llama if opened.kind == ModelKind.LLAMA else opt).abstract_params(config)  # type: ignore[arg-type]
    if opened.kind in DECODERS:
        if opened.kind == ModelKind.UNCLIP:
            return diffusers_import.abstract_params(UnclipConfig.from_dict(sizes, where))
        return stable_diffusion.abstract_params(StableDiffusionConfig.from_dict(sizes, where))
    return None
