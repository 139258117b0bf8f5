"""Losses as (sum, weight), so that adding them over microbatches and devices is exact."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Num

from seed_jax.models.nn import fsdp_matmul
from seed_jax.precision import Precision

LOGITS = ("batch", "sequence", "act_vocab")

Scalar = Float[Array, ""] | jax.ShapeDtypeStruct  # the latter where only shapes are traced


@flax.struct.dataclass
class WeightedSum:
    """A sum of weighted terms and the sum of their weights, both float32."""

    sum: Scalar
    weight: Scalar

    @property
    def mean(self) -> Float[Array, ""]:
        """The weighted mean; 0 where nothing was counted."""
        return jnp.where(self.weight > 0, self.sum / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        return WeightedSum(self.sum + other.sum, self.weight + other.weight)

    @classmethod
    def of(cls, terms: Float[Array, "*S"], weights: Float[Array, "*S"]) -> "WeightedSum":
        # `where`, because a term that does not count may be infinite.
        return cls(jnp.sum(jnp.where(weights != 0, terms * weights, 0.0)), jnp.sum(weights))


@flax.struct.dataclass
class NextTokenLoss:
    """Negative log-likelihood in nats of all targets that count, of those in `split`, and of the rest."""

    total: WeightedSum
    split: WeightedSum
    rest: WeightedSum


@jax.custom_vjp
def _project(
    hidden: Float[Array, "B T D"], kernel: Float[Array, "D P"], master: Float[Array, "D P"]
) -> Float[Array, "B T P"]:
    """Return hidden times kernel in float32; the gradient goes to `master`, in float32.

    `kernel` is `master` in the compute dtype. Differentiating through that cast instead would add up the chunks'
    gradients in bfloat16, and would multiply float32 cotangents with bfloat16 weights, which GPUs do slowly.
    """
    return _product("btd,dp->btp", hidden, kernel)


def _project_forward(hidden, kernel, master):
    return _product("btd,dp->btp", hidden, kernel), (hidden, kernel, jnp.zeros((), master.dtype))


def _project_backward(kept, cotangent):
    hidden, kernel, like = kept
    cotangent = cotangent.astype(kernel.dtype)
    to_hidden = _product("btp,dp->btd", cotangent, kernel).astype(hidden.dtype)
    to_master = _product("btd,btp->dp", hidden, cotangent).astype(like.dtype)
    return to_hidden, jnp.zeros_like(kernel), to_master


_project.defvjp(_project_forward, _project_backward)


def _product(subscripts: str, x: Array, y: Array) -> Array:
    # Whole float32 products for float32 operands: TPUs and GPUs otherwise round them.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(subscripts, x, y, precision=precision, preferred_element_type=jnp.float32)


def _token_nll(logits: Float[Array, "B T P"], targets: Int[Array, "B T"], vocab_size: int) -> Float[Array, "B T"]:
    """Return -log p(target); columns from `vocab_size` on have no probability."""
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    logits = jnp.where(column < vocab_size, logits, -jnp.inf)
    # A masked sum instead of a look-up: it stays local where the vocabulary is cut over devices.
    target = jnp.sum(jnp.where(column == targets[:, :, None], logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - target


def next_token_loss(
    hidden: Float[Array, "B T D"],
    head_kernel: Float[Array, "D P"],
    targets: Int[Array, "B T"],
    loss_mask: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    vocab_size: int,
    split: Bool[Array, "B T"] | None = None,
    chunk: int = 512,
    precision: Precision = Precision(),
) -> NextTokenLoss:
    """Score targets without ever holding the logits of more than `chunk` positions of each row.

    Logits are recomputed chunk by chunk in the backward pass. Chunks run along T, so that every device keeps its rows.

    Args:
        hidden: states after the final norm (`Llama.features`); `targets` are the tokens to predict from them.
        head_kernel: the head with its padded columns, which get neither probability nor gradient.
        loss_mask: weight of each target; 0 leaves it out.
        split: targets to report on their own, for instance image codes; none by default.
        chunk: positions of a row at a time; need not divide T.
    """
    hidden = hidden.astype(precision.compute_dtype)
    weights = loss_mask.astype(jnp.float32)
    split = jnp.zeros(targets.shape, bool) if split is None else split
    run = functools.partial(_score_rows, vocab_size=vocab_size, chunk=chunk)
    manual = fsdp_matmul.batch_axes(hidden.shape[0])
    if not manual:
        # Gathered over `embed` once, not in every chunk.
        kernel = jax.lax.stop_gradient(head_kernel).astype(precision.compute_dtype)
        kernel = nn.with_logical_constraint(kernel, ("act_embed", "act_vocab"))
        return run(hidden, kernel, head_kernel, targets, weights, split, LOGITS)
    place = fsdp_matmul.place_of(("embed", "vocab"), manual)

    def local(hidden, head_kernel, targets, weights, split):
        # Per device, so that a chunk's gradient of the head stays there and only their sum is sent, once.
        kernel = fsdp_matmul.whole(jax.lax.stop_gradient(head_kernel).astype(precision.compute_dtype), place)
        # Of the float32 head only the gradient's way back is used; gathering its values is left out by the compiler.
        master = fsdp_matmul.whole(head_kernel, place)
        # Where devices hold the same part, their gradients differ until they are summed on the way back.
        alike = tuple(axis for axis in manual if axis not in place)
        kernel, master = (jax.lax.pcast(x, alike, to="varying") if alike else x for x in (kernel, master))
        found = run(hidden, kernel, master, targets, weights, split, (None, *LOGITS[1:]))
        return jax.tree.map(lambda x: jax.lax.psum(x, manual), found)

    rows = PartitionSpec(manual)
    mapped = jax.shard_map(
        local, in_specs=(rows, place, rows, rows, rows), out_specs=PartitionSpec(), axis_names=set(manual)
    )
    return mapped(hidden, head_kernel, targets, weights, split)


def _score_rows(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D P"],
    master: Float[Array, "D P"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    split: Bool[Array, "B T"],
    axes: tuple[str | None, ...],
    *,
    vocab_size: int,
    chunk: int,
) -> NextTokenLoss:
    """Add up the loss chunk by chunk; `axes` are the logical axes of a chunk's logits."""

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan by itself keeps the recomputation
    def score(kernel, master, part) -> NextTokenLoss:
        hidden, targets, weights, apart = part
        hidden = nn.with_logical_constraint(hidden, (*axes[:2], "act_embed"))
        logits = nn.with_logical_constraint(_project(hidden, kernel, master), axes)
        nll = _token_nll(logits, targets, vocab_size)
        return NextTokenLoss(
            total=WeightedSum.of(nll, weights),
            split=WeightedSum.of(nll, weights * apart),
            rest=WeightedSum.of(nll, weights * ~apart),
        )

    def body(total: NextTokenLoss, part) -> tuple[NextTokenLoss, None]:
        return jax.tree.map(jnp.add, total, score(kernel, master, part)), None

    chunk = min(chunk, targets.shape[1])
    parts = jax.tree.map(lambda x: _chunks(x, chunk), (hidden, targets, weights, split))
    # Made from the rows, so that under `shard_map` it belongs to the same devices as the sums.
    nothing = WeightedSum(*[0.0 * jnp.where(jnp.isfinite(weights), weights, 0.0).sum()] * 2)
    return jax.lax.scan(body, NextTokenLoss(nothing, nothing, nothing), parts)[0]


def _chunks(x: Array, chunk: int) -> Array:
    """Cut [B, T, ...] into [ceil(T / chunk), B, chunk, ...], filling up with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)
