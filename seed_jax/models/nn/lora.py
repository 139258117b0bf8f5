"""Low-rank adapters (LoRA) as functions over parameter trees.

Adapters are a separate tree: `{path: {"a": [.., I, R], "b": [.., R, O]}}`, with the paths of the kernels they adapt. A
leading `layers` axis is kept, so that scanned layers have scanned adapters. The original uses rank 16, alpha 32 and
dropout 0.05 on all seven projections of a LLaMA block (spec D.1).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

from seed_jax.errors import UserError
from seed_jax.models.config_io import from_dict
from seed_jax.models.nn import fsdp_matmul
from seed_jax.precision import Precision
from seed_jax.typing import ParamPath, Tree


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """Names of the projections that are adapted (a model's `lora_targets` by default), and sizes of the adapters."""

    targets: tuple[str, ...]
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


def read_spec(settings: Any, where: str, targets: Iterable[str]) -> LoraSpec:
    """Read rank, alpha and dropout from the key `lora` of a model directory's `config.json`.

    Args:
        settings: value of the key.
        where: its origin, for messages.
        targets: names of the adapted projections.

    Raises:
        UserError: a value is missing or out of range.
    """
    if not isinstance(settings, dict):
        raise UserError(f"{where}: 'lora' holds a {type(settings).__name__}, expected an object.")
    return from_dict(LoraSpec, {**settings, "targets": list(targets)}, f"{where}, lora,")


def delta(
    x: Float[Array, "*B I"],
    a: Float[Array, "I R"],
    b: Float[Array, "R O"],
    spec: LoraSpec,
    *,
    rng: Key[Array, ""] | None = None,
    precision: Precision = Precision(),
) -> Float[Array, "*B O"]:
    """Return the adapter's output `scale * dropout(x) @ a @ b`; no dropout without `rng`."""
    if rng is not None:
        keep = 1.0 - spec.dropout
        # Materialized: fused into all its consumers, the random bit generation alone compiles for minutes on TPUs.
        mask = fsdp_matmul.fusion_barrier(jax.random.bernoulli(rng, keep, x.shape))
        x = jnp.where(mask, x / keep, 0).astype(x.dtype)
    low_rank = jnp.matmul(x, a.astype(x.dtype), precision=precision.matmul)
    return jnp.matmul(low_rank, b.astype(x.dtype), precision=precision.matmul) * spec.scale


def init(params: Tree, spec: LoraSpec, rng: Key[Array, ""]) -> Tree:
    """Create adapters for every targeted kernel: `a` uniform as PyTorch's Kaiming default, `b` zero.

    Args:
        params: nested dict; kernels are [..., I, O].
        spec: sizes and targets.
        rng: key; one is split off per kernel, in the order of the paths.
    """
    adapters = {}
    kernels: dict[ParamPath, Any] = flatten_dict(params)
    for path, kernel in sorted(kernels.items()):
        if path[-1] != "kernel" or path[-2] not in spec.targets:
            continue
        *lead, fan_in, fan_out = kernel.shape
        rng, key = jax.random.split(rng)
        bound = fan_in**-0.5  # kaiming_uniform with a = sqrt(5), peft's choice
        adapters[(*path[:-1], "a")] = jax.random.uniform(key, (*lead, fan_in, spec.rank), jnp.float32, -bound, bound)
        adapters[(*path[:-1], "b")] = jnp.zeros((*lead, spec.rank, fan_out), jnp.float32)
    return unflatten_dict(adapters)


def abstract(params: Tree, spec: LoraSpec) -> Tree:
    """Return the abstract adapters of `init`, boxed with logical axis names, for boxed abstract `params`."""
    adapters = {}
    kernels: dict[ParamPath, Any] = flatten_dict(params)
    for path, kernel in kernels.items():
        if path[-1] != "kernel" or path[-2] not in spec.targets:
            continue
        *lead, fan_in, fan_out = kernel.value.shape
        *lead_axes, axis_in, axis_out = kernel.names
        # The rank is too small to shard; so the other dimension is sharded over all devices.
        axis_in, axis_out = (name if name == "embed" else "adapter" for name in (axis_in, axis_out))
        for leaf, shape, axes in (
            ("a", (*lead, fan_in, spec.rank), (*lead_axes, axis_in, None)),
            ("b", (*lead, spec.rank, fan_out), (*lead_axes, None, axis_out)),
        ):
            adapters[(*path[:-1], leaf)] = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), axes)
    return unflatten_dict(adapters)


def merge(params: Tree, adapters: Tree, spec: LoraSpec) -> Tree:
    """Return `params` with `scale * a @ b` added (in float32) to every adapted kernel."""
    merged: dict[ParamPath, Any] = flatten_dict(params)
    flat: dict[ParamPath, Any] = flatten_dict(adapters)
    for path in [path[:-1] for path in flat if path[-1] == "a"]:
        kernel = merged[(*path, "kernel")]
        update = jnp.matmul(flat[(*path, "a")], flat[(*path, "b")], precision="highest") * spec.scale
        merged[(*path, "kernel")] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(merged)
