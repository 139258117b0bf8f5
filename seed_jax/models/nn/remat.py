"""What a layer keeps of its forward pass for the backward pass, by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from seed_jax.errors import UserError

_POLICIES = jax.checkpoint_policies
OPERANDS, CONTEXT = ("query", "key", "value"), "context"  # of attention, named where it is computed
ATTENTION_NAMES = (*OPERANDS, CONTEXT)
# Products with gathered weights, and kernels, are calls that the policies for dots do not look into. Query and key
# after their rotation take the place of the products they come from: as much memory, and nothing is rotated twice.
_CALLS = _POLICIES.save_only_these_names("product", *ATTENTION_NAMES)

# From least memory and most recomputation to most memory and none.
POLICIES: dict[str, Callable | None] = {
    "full": _POLICIES.nothing_saveable,
    "save_qkv": _POLICIES.save_only_these_names(*ATTENTION_NAMES),
    "dots_no_batch": _POLICIES.save_from_both_policies(_POLICIES.dots_with_no_batch_dims_saveable, _CALLS),
    "dots": _POLICIES.save_from_both_policies(_POLICIES.dots_saveable, _CALLS),
    "none": None,
}
name = checkpoint_name


def wrap(module: type[nn.Module], policy: str, *, scanned: bool) -> type[nn.Module]:
    """Return `module` with its forward pass recomputed in the backward pass as `policy` says.

    Args:
        policy: "full" keeps only the inputs of a layer; "save_qkv" also query, key, value and attention output;
            "dots_no_batch" the results of all projections; "dots" those and the attention scores; "none" everything.
        scanned: whether the module runs under a scan, which by itself keeps XLA from undoing the recomputation.
    """
    if policy not in POLICIES:
        raise UserError(f"Unknown remat policy {policy!r}: expected one of {', '.join(POLICIES)}.")
    if policy == "none":
        return module
    return nn.remat(module, policy=POLICIES[policy], prevent_cse=not scanned)
