"""Low-rank adapters (LoRA) as functions over parameter trees.

Adapters are a tree of their own: `{path: {"a": [.., I, R], "b": [.., R, O]}}` beside the kernels they adapt. A leading
`layers` axis is carried along, so that scanned layers are adapted by scanned adapters. Settings of the original:
rank 16, alpha 32, dropout 0.05 on all seven projections of a block (spec D.1).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key

from seed_jax.models.nn import fsdp_matmul
from seed_jax.precision import Precision

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """Sizes of the adapters and the names of the projections they sit on."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def delta(
    x: Float[Array, "*B I"],
    a: Float[Array, "I R"],
    b: Float[Array, "R O"],
    spec: LoraSpec,
    *,
    rng: Key[Array, ""] | None = None,
    precision: Precision = Precision(),
) -> Float[Array, "*B O"]:
    """Return the adapter's contribution `scale * dropout(x) a b`; no dropout without `rng`."""
    if rng is not None:
        keep = 1.0 - spec.dropout
        # Drawn once: worked into all that takes it, the making of random bits alone compiles for minutes on TPUs.
        kept = fsdp_matmul.settled(jax.random.bernoulli(rng, keep, x.shape))
        x = jnp.where(kept, x / keep, 0).astype(x.dtype)
    low = jnp.matmul(x, a.astype(x.dtype), precision=precision.matmul)
    return jnp.matmul(low, b.astype(x.dtype), precision=precision.matmul) * spec.scale


def init(params: dict, spec: LoraSpec, rng: Key[Array, ""]) -> dict:
    """Make adapters for every targeted kernel of `params`: `a` uniform as torch's Kaiming default, `b` zero.

    Args:
        params: nested dict; kernels are [..., I, O].
    """
    adapters = {}
    for path, kernel in sorted(flatten_dict(params).items()):
        if path[-1] != "kernel" or path[-2] not in spec.targets:
            continue
        *lead, fan_in, fan_out = kernel.shape
        rng, key = jax.random.split(rng)
        bound = fan_in**-0.5  # kaiming_uniform with a = sqrt(5), peft's choice
        adapters[(*path[:-1], "a")] = jax.random.uniform(key, (*lead, fan_in, spec.rank), jnp.float32, -bound, bound)
        adapters[(*path[:-1], "b")] = jnp.zeros((*lead, spec.rank, fan_out), jnp.float32)
    return unflatten_dict(adapters)


def abstract(params: dict, spec: LoraSpec) -> dict:
    """Return the shapes of `init`'s adapters, boxed with logical axis names, for boxed shapes of `params`."""
    adapters = {}
    for path, kernel in flatten_dict(params).items():
        if path[-1] != "kernel" or path[-2] not in spec.targets:
            continue
        (*lead, fan_in, fan_out), (*names, name_in, name_out) = kernel.value.shape, kernel.names
        # The other axis, the rank, is too short to cut; so the long one is cut over all devices.
        long_in, long_out = (name if name == "embed" else "adapter" for name in (name_in, name_out))
        for leaf, shape, axes in (
            ("a", (*lead, fan_in, spec.rank), (*names, long_in, None)),
            ("b", (*lead, spec.rank, fan_out), (*names, None, long_out)),
        ):
            adapters[(*path[:-1], leaf)] = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), axes)
    return unflatten_dict(adapters)


def merge(params: dict, adapters: dict, spec: LoraSpec) -> dict:
    """Return `params` with `scale * a b` added (in float32) to every adapted kernel."""
    merged, flat = flatten_dict(params), flatten_dict(adapters)
    for path in [path[:-1] for path in flat if path[-1] == "a"]:
        kernel = merged[(*path, "kernel")]
        update = jnp.matmul(flat[(*path, "a")], flat[(*path, "b")], precision="highest") * spec.scale
        merged[(*path, "kernel")] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(merged)
