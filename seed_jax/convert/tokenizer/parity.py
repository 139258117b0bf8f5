"""Compare the original's tokenizer files with a model directory: tensors, and what both sides compute from them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint.lazy import on_device
from seed_jax.convert.key_table import rounded, widest
from seed_jax.convert.merging import converted
from seed_jax.convert.parity import Check, Report, make_report
from seed_jax.convert.tensors import Tensor, Tensors, listed
from seed_jax.convert.tokenizer.key_table import VIT
from seed_jax.convert.tokenizer.official_export import open_official
from seed_jax.convert.tokenizer.torch_reference import Codes, TorchTokenizer
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig

_PICTURES = 2
_POSITIONS = "position_ids"
# Of the largest value. Float32 sums in another order move 39 layers by about 1e-5 of it, a tanh GELU by about 1e-3.
_VALUES_LIMIT = 5e-4
# A code whose runner-up is as near as this share of its own distance may come out either way.
_NEAR_TIE = 1e-3


def report(
    title: str,
    model: str | Path,
    files: Sequence[Tensors],
    *,
    importing: bool,
    forward: bool = True,
    facts: Mapping[str, str],
) -> Report:
    """Return the parity report of a conversion.

    Args:
        model: directory of the tokenizer.
        files: the official files' tensors, the image encoder's with their prefix, in each of the formats written.
        importing: whether the files came first.
        forward: compute on both sides, too; needs PyTorch and the memory of the model in float32.
    """
    official = open_official(model)
    pairs = [_shared(official.tensors, found) for found in files]
    theirs = pairs[0][1]
    pairs = [(pair[1], pair[0]) for pair in pairs] if importing else pairs
    options = {"needs": ["torch"], "what": "codes and embeddings"}
    if official.config is None:  # a model of stage I has no codes yet
        return make_report(title, facts, pairs, None, **options)

    def run() -> tuple[Check, ...]:
        stored = widest(tensor.dtype for tensor in theirs.values() if tensor.dtype.kind != "i")
        params = converted(converted(official.params, stored), np.dtype(np.float32))
        # Where the image encoder was left out on purpose, both sides take ours.
        both = Tensors({**_rounded(official.tensors, stored), **theirs}, theirs.where)
        return forward_checks(official.config, on_device(params), both)

    return make_report(title, facts, pairs, run if forward else None, **options)


def _rounded(tensors: Tensors, dtype: np.dtype) -> dict[str, Tensor]:
    def replace(name: str, tensor: Tensor) -> Tensor:
        return dataclasses.replace(tensor, read=lambda: rounded(name, tensor.read(), dtype))

    return {name: replace(name, tensor) for name, tensor in tensors.items()}


def _shared(ours: Tensors, files: Tensors) -> tuple[Tensors, Tensors]:
    """Return the tensors that both should have; files may come without the image encoder and without positions."""
    optional = [name for name in ours if name.endswith(_POSITIONS)]
    if not any(name.startswith(VIT) for name in files):
        optional += [name for name in ours if name.startswith(VIT)]
    missing = [name for name in ours if name not in files and name not in set(optional)]
    if missing:
        raise UserError(f"{files.where} lacks {listed(missing)}.")
    both = [name for name in ours if name in files]
    return tuple(Tensors({name: side[name] for name in both}, side.where) for side in (ours, files))


def forward_checks(config: SeedTokenizerConfig, params: Mapping[str, Any], tensors: Tensors) -> tuple[Check, ...]:
    """Compare causal embeddings, codes and generation embeddings in float32.

    Args:
        params: arrays, at once on the device.
        tensors: by official names.
    """
    rng, size = np.random.default_rng(0), config.image_size
    image = rng.standard_normal((_PICTURES, size, size, 3)).astype(np.float32)
    codes = rng.integers(0, config.num_codes, (_PICTURES, config.codes_per_image)).astype(np.int32)
    reference = TorchTokenizer(config, tensors)
    encoded, embedded = reference.encode(image), reference.embed_codes(codes)
    model = SeedTokenizer(config)
    ours = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))(params, jnp.asarray(image))
    vectors = jax.jit(lambda p, x: model.apply({"params": p}, x, method="embed_codes"))(params, jnp.asarray(codes))
    return (
        _values("causal embeddings", ours.embeddings, encoded.embeddings),
        _codes(np.asarray(ours.codes), encoded),
        _values("generation embedding", vectors, embedded),
    )


def _values(name: str, ours: jax.Array, theirs: np.ndarray) -> Check:
    apart = float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
    return Check(name, apart, _VALUES_LIMIT, "greatest difference from PyTorch's, of its largest value")


def _codes(ours: np.ndarray, theirs: Codes) -> Check:
    clear = theirs.margin > _NEAR_TIE * theirs.distance
    wrong = int(((ours != theirs.codes) & clear).sum())
    meaning = f"that differ from PyTorch's, of {ours.size}, {ours.size - int(clear.sum())} near ties not counted"
    return Check("codes", float(wrong), 0.0, meaning)
