"""Next-token loss as (sum, weight), so that accumulation over microbatches and devices is exact."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

from seed_jax.models.nn import fsdp_matmul
from seed_jax.models.nn.token_embedding import LOGITS_AXES
from seed_jax.precision import Precision

Scalar = Float[Array, ""] | Any  # Any: abstract values have the same structure


@flax.struct.dataclass
class WeightedSum:
    """A sum of weighted terms and the sum of their weights, both float32."""

    sum: Scalar
    weight: Scalar

    @property
    def mean(self) -> Float[Array, ""]:
        """The weighted mean; 0 if the total weight is 0."""
        return jnp.where(self.weight > 0, self.sum / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        return WeightedSum(self.sum + other.sum, self.weight + other.weight)

    @classmethod
    def from_terms(cls, terms: Float[Array, "*S"], weights: Float[Array, "*S"]) -> "WeightedSum":
        """Sum `terms * weights`; terms of weight 0 may be infinite."""
        return cls(jnp.sum(jnp.where(weights != 0, terms * weights, 0.0)), jnp.sum(weights))


@flax.struct.dataclass
class NextTokenLoss:
    """Negative log-likelihood in nats: of all targets, of those in `subset`, and of the rest."""

    total: WeightedSum
    subset: WeightedSum
    rest: WeightedSum


@jax.custom_vjp
def _project(
    hidden: Float[Array, "B T D"], kernel: Float[Array, "D P"], master: Float[Array, "D P"]
) -> Float[Array, "B T P"]:
    """Return `hidden @ kernel` in float32; the gradient goes to `master`, in float32.

    `kernel` is `master` in the compute dtype. Differentiating through that cast instead would accumulate the chunks'
    gradients in bfloat16, and would multiply float32 cotangents with bfloat16 weights, which is slow on GPUs.
    """
    return _einsum("btd,dp->btp", hidden, kernel)


def _project_forward(hidden, kernel, master):
    return _einsum("btd,dp->btp", hidden, kernel), (hidden, kernel, jnp.zeros((), master.dtype))


def _project_backward(residuals, cotangent):
    hidden, kernel, like_master = residuals
    cotangent = cotangent.astype(kernel.dtype)
    hidden_gradient = _einsum("btp,dp->btd", cotangent, kernel).astype(hidden.dtype)
    master_gradient = _einsum("btd,btp->dp", hidden, cotangent).astype(like_master.dtype)
    return hidden_gradient, jnp.zeros_like(kernel), master_gradient


_project.defvjp(_project_forward, _project_backward)


def _einsum(subscripts: str, x: Array, y: Array) -> Array:
    # Full precision for float32 operands, which TPUs and GPUs otherwise reduce.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(subscripts, x, y, precision=precision, preferred_element_type=jnp.float32)


def _token_nll(logits: Float[Array, "B T P"], targets: Int[Array, "B T"], vocab_size: int) -> Float[Array, "B T"]:
    """Return -log p(target); the padded columns from `vocab_size` on have probability 0."""
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    logits = jnp.where(column < vocab_size, logits, -jnp.inf)
    # A masked sum instead of a gather: it stays local where the vocabulary is sharded.
    target = jnp.sum(jnp.where(column == targets[:, :, None], logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - target


def next_token_loss(
    hidden: Float[Array, "B T D"],
    head_kernel: Float[Array, "D P"],
    targets: Int[Array, "B T"],
    loss_mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    vocab_size: int,
    subset_mask: Bool[Array, "B T"] | None = None,
    chunk_size: int = 512,
    precision: Precision = Precision(),
) -> NextTokenLoss:
    """Score targets without materializing the logits of more than `chunk_size` positions of each sequence.

    Logits are recomputed chunk by chunk in the backward pass. Chunks run along T, so that every device keeps its
    sequences.

    Args:
        hidden: states after the final norm (`Llama.features`).
        head_kernel: kernel of the output head with its padded columns, which get neither probability nor gradient.
        targets: the token to predict at each position.
        loss_mask: weight of each target; 0 excludes it.
        vocab_size: number of columns of `head_kernel` that are not padding.
        subset_mask: targets that are reported separately, for instance image codes; none by default.
        chunk_size: positions of a sequence per chunk; need not divide T.
        precision: its compute dtype is that of the matmul operands; the loss is float32.
    """
    hidden = hidden.astype(precision.compute_dtype)
    weights = loss_mask.astype(jnp.float32)
    subset = jnp.zeros(targets.shape, bool) if subset_mask is None else subset_mask
    score = functools.partial(_score_chunks, vocab_size=vocab_size, chunk_size=chunk_size)
    batch_axes = fsdp_matmul.batch_axes(hidden.shape[0])
    if not batch_axes:
        # All-gathered over `embed` once, not in every chunk.
        kernel = jax.lax.stop_gradient(head_kernel).astype(precision.compute_dtype)
        kernel = with_logical_constraint(kernel, ("act_embed", "act_vocab"))
        return score(hidden, kernel, head_kernel, targets, weights, subset, LOGITS_AXES)
    kernel_spec = fsdp_matmul.weight_spec(("embed", "vocab"), batch_axes)

    def score_on_device(hidden, head_kernel, targets, weights, subset):
        # Per device, so that a chunk's gradient of the head stays local and only the sum over chunks is reduced, once.
        kernel = jax.lax.stop_gradient(head_kernel).astype(precision.compute_dtype)
        kernel = fsdp_matmul.all_gather_weight(kernel, kernel_spec)
        # Only the transpose of this all-gather is used; the compiler removes the forward one of the float32 head.
        master = fsdp_matmul.all_gather_weight(head_kernel, kernel_spec)
        # Where devices replicate a shard, their gradients differ until they are summed in the backward pass.
        replicated_axes = tuple(axis for axis in batch_axes if axis not in kernel_spec)
        if replicated_axes:
            kernel = jax.lax.pcast(kernel, replicated_axes, to="varying")
            master = jax.lax.pcast(master, replicated_axes, to="varying")
        loss = score(hidden, kernel, master, targets, weights, subset, (None, *LOGITS_AXES[1:]))
        return jax.tree.map(lambda x: jax.lax.psum(x, batch_axes), loss)

    batch_spec = PartitionSpec(batch_axes)
    sharded_score = jax.shard_map(
        score_on_device,
        in_specs=(batch_spec, kernel_spec, batch_spec, batch_spec, batch_spec),
        out_specs=PartitionSpec(),
        axis_names=set(batch_axes),
    )
    return sharded_score(hidden, head_kernel, targets, weights, subset)


def _score_chunks(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D P"],
    master: Float[Array, "D P"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    subset: Bool[Array, "B T"],
    logits_axes: tuple[str | None, ...],
    *,
    vocab_size: int,
    chunk_size: int,
) -> NextTokenLoss:
    """Accumulate the loss chunk by chunk; `logits_axes` are the logical axes of a chunk's logits."""

    @functools.partial(jax.checkpoint, prevent_cse=False)  # under a scan, XLA cannot undo the recomputation
    def score_chunk(kernel, master, chunk) -> NextTokenLoss:
        hidden, targets, weights, subset = chunk
        hidden = with_logical_constraint(hidden, (*logits_axes[:2], "act_embed"))
        logits = with_logical_constraint(_project(hidden, kernel, master), logits_axes)
        nll = _token_nll(logits, targets, vocab_size)
        return NextTokenLoss(
            total=WeightedSum.from_terms(nll, weights),
            subset=WeightedSum.from_terms(nll, weights * subset),
            rest=WeightedSum.from_terms(nll, weights * ~subset),
        )

    def add_chunk(total: NextTokenLoss, chunk) -> tuple[NextTokenLoss, None]:
        return jax.tree.map(jnp.add, total, score_chunk(kernel, master, chunk)), None

    chunk_size = min(chunk_size, targets.shape[1])
    chunks = jax.tree.map(lambda x: _split_into_chunks(x, chunk_size), (hidden, targets, weights, subset))
    # Derived from the batch, so that under `shard_map` it varies over the same mesh axes as the sums.
    zero = 0.0 * jnp.where(jnp.isfinite(weights), weights, 0.0).sum()
    empty = WeightedSum(zero, zero)
    return jax.lax.scan(add_chunk, NextTokenLoss(empty, empty, empty), chunks)[0]


def _split_into_chunks(x: Array, chunk_size: int) -> Array:
    """Reshape [B, T, ...] to [ceil(T / chunk_size), B, chunk_size, ...], padding T with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk_size), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:]), 1, 0)
