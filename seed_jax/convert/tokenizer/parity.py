"""Parity reports of the image tokenizer: compare official files with a model directory, and both models' outputs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint.lazy import load_on_device
from seed_jax.convert.key_table import checked_cast, promoted_dtype
from seed_jax.convert.merging import cast_params
from seed_jax.convert.parity import Check, ParityReport, make_report
from seed_jax.convert.tensors import LazyTensor, TensorDict, format_names
from seed_jax.convert.tokenizer.key_table import VIT
from seed_jax.convert.tokenizer.official_export import open_official
from seed_jax.convert.tokenizer.torch_reference import TorchCodes, TorchTokenizer
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig

_NUM_IMAGES = 2
_POSITIONS = "position_ids"  # suffix of constant buffers
# Relative to the largest value. Float32 sums in another order change 39 layers' output by 1e-5, a tanh GELU by 1e-3.
_VALUES_LIMIT = 5e-4
# Codes are not compared where the second-nearest is this close, relative to the distance of the nearest.
_NEAR_TIE = 1e-3


def parity_report(
    title: str,
    model: str | Path,
    files: Sequence[TensorDict],
    *,
    importing: bool,
    forward: bool = True,
    facts: Mapping[str, str],
) -> ParityReport:
    """Compare official files with a model directory.

    Args:
        title, facts: of the report.
        model: model directory or training workdir of the tokenizer.
        files: the official files' tensors, once per format; the ViT's with their prefix.
        importing: whether the files are the source of the conversion.
        forward: also compare codes and embeddings; needs PyTorch and the memory of the model in float32.
    """
    official = open_official(model)
    config, params = official.config, official.params
    pairs = [_common_tensors(official.tensors, tensors) for tensors in files]
    theirs = pairs[0][1]
    pairs = [(theirs, ours) if importing else (ours, theirs) for ours, theirs in pairs]
    needs, what = ["torch"], "codes and embeddings"
    if config is None or params is None:  # a stage I model has no codes yet
        return make_report(title, facts, pairs, None, needs=needs, what=what)

    def run() -> tuple[Check, ...]:
        stored = promoted_dtype(tensor.dtype for tensor in theirs.values() if tensor.dtype.kind != "i")
        weights = cast_params(cast_params(params, stored), np.dtype(np.float32))
        # Both models use our ViT where the files omit it on purpose.
        complete = TensorDict({**_cast_tensors(official.tensors, stored), **theirs}, theirs.source)
        return forward_checks(config, load_on_device(weights), complete)

    return make_report(title, facts, pairs, run if forward else None, needs=needs, what=what)


def _cast_tensors(tensors: TensorDict, dtype: np.dtype) -> dict[str, LazyTensor]:
    def replace(name: str, tensor: LazyTensor) -> LazyTensor:
        return dataclasses.replace(tensor, read=lambda: checked_cast(name, tensor.read(), dtype))

    return {name: replace(name, tensor) for name, tensor in tensors.items()}


def _common_tensors(ours: TensorDict, files: TensorDict) -> tuple[TensorDict, TensorDict]:
    """Return the tensors that both have; files may omit the ViT and the position buffers, but nothing else."""
    optional = [name for name in ours if name.endswith(_POSITIONS)]
    if not any(name.startswith(VIT) for name in files):
        optional += [name for name in ours if name.startswith(VIT)]
    missing = [name for name in ours if name not in files and name not in set(optional)]
    if missing:
        raise UserError(f"{files.source} lacks {format_names(missing)}: export or download it again.")
    common = [name for name in ours if name in files]
    return (
        TensorDict({name: ours[name] for name in common}, ours.source),
        TensorDict({name: files[name] for name in common}, files.source),
    )


def forward_checks(config: SeedTokenizerConfig, params: Mapping[str, Any], tensors: TensorDict) -> tuple[Check, ...]:
    """Compare causal embeddings, codes and generation embeddings; both sides compute in float32.

    Args:
        params: tree of arrays on the device.
        tensors: by official names, for PyTorch.
    """
    rng, size = np.random.default_rng(0), config.image_size
    images = rng.standard_normal((_NUM_IMAGES, size, size, 3)).astype(np.float32)
    codes = rng.integers(0, config.num_codes, (_NUM_IMAGES, config.codes_per_image)).astype(np.int32)
    reference = TorchTokenizer(config, tensors)
    expected, expected_embeddings = reference.encode(images), reference.embed_codes(codes)
    model = SeedTokenizer(config)
    encoded = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))(params, jnp.asarray(images))
    embeddings = jax.jit(lambda p, x: model.apply({"params": p}, x, method="embed_codes"))(params, jnp.asarray(codes))
    return (
        _compare_values("causal embeddings", encoded.embeddings, expected.embeddings),
        _compare_codes(np.asarray(encoded.codes), expected),
        _compare_values("generation embedding", embeddings, expected_embeddings),
    )


def _compare_values(name: str, values: jax.Array, expected: np.ndarray) -> Check:
    difference = float(np.abs(np.asarray(values) - expected).max() / np.abs(expected).max())
    return Check(name, difference, _VALUES_LIMIT, "greatest difference from PyTorch's, relative to the largest value")


def _compare_codes(codes: np.ndarray, expected: TorchCodes) -> Check:
    decided = expected.margin > _NEAR_TIE * expected.distance
    different = int(((codes != expected.codes) & decided).sum())
    ties = codes.size - int(decided.sum())
    return Check(
        "codes", float(different), 0.0, f"differ from PyTorch's, of {codes.size}; {ties} near ties not counted"
    )
