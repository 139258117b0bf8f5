"""Rematerialization policies: what a layer saves of its forward pass for the backward pass."""

from collections.abc import Callable

import flax.linen as nn
import jax

from seed_jax.errors import UserError
from seed_jax.models.nn import fsdp_matmul

_POLICIES = jax.checkpoint_policies
# Names under which `attend` marks its operands and its result (`jax.ad_checkpoint.checkpoint_name`).
OPERAND_NAMES = ("query", "key", "value")
CONTEXT_NAME = "context"
ATTENTION_NAMES = (*OPERAND_NAMES, CONTEXT_NAME)
# FSDP matmuls and attention kernels are calls whose inside the policies for dots do not see. Query and key are saved
# after their rotation instead of the matmuls they come from: the same memory, and no rotation is recomputed.
_NAMED = _POLICIES.save_only_these_names(fsdp_matmul.RESULT_NAME, *ATTENTION_NAMES)

# From least memory and most recomputation to most memory and none.
POLICIES: dict[str, Callable | None] = {
    "full": _POLICIES.nothing_saveable,
    "save_qkv": _POLICIES.save_only_these_names(*ATTENTION_NAMES),
    "dots_no_batch": _POLICIES.save_from_both_policies(_POLICIES.dots_with_no_batch_dims_saveable, _NAMED),
    "dots": _POLICIES.save_from_both_policies(_POLICIES.dots_saveable, _NAMED),
    "none": None,
}


def wrap(module: type[nn.Module], policy: str, *, scanned: bool) -> type[nn.Module]:
    """Return `module` with its forward pass recomputed in the backward pass.

    Args:
        module: class of the layer.
        policy: what is saved: "full" only the inputs of a layer; "save_qkv" also query, key, value and attention
            output; "dots_no_batch" the results of all projections; "dots" those and the attention scores; "none"
            everything, without recomputation.
        scanned: whether the module runs under a scan, where XLA cannot undo the recomputation.

    Raises:
        UserError: the policy is unknown.
    """
    if policy not in POLICIES:
        raise UserError(f"Unknown remat policy {policy!r}: expected one of {', '.join(POLICIES)}.")
    if policy == "none":
        return module
    return nn.remat(module, policy=POLICIES[policy], prevent_cse=not scanned)
