"""The program that generates: prefill, then a loop over a static KV cache with the grammar inside (spec I.C)."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seed_jax.inference.grammar import Grammar, GrammarState
from seed_jax.models.llama import KVCache, Llama


@flax.struct.dataclass
class Answers:
    """Generated ids, how many of them count in each row (EOS does not), and which rows ended with EOS."""

    ids: Int[Array | np.ndarray, "B N"]
    counts: Int[Array | np.ndarray, " B"]
    ended: Bool[Array | np.ndarray, " B"]


@flax.struct.dataclass
class _Loop:
    """What the decoding loop carries; N is the most tokens that may be generated."""

    step: Int[Array, ""]
    token: Int[Array, " B"]
    ids: Int[Array, "B N"]
    counts: Int[Array, " B"]
    done: Bool[Array, " B"]
    ended: Bool[Array, " B"]
    grammar: GrammarState
    cache: KVCache


def greedy(logits: Float[Array, "B V"], allowed: Bool[Array, "B V"]) -> Int[Array, " B"]:
    """Return the likeliest token that is allowed; ties go to the lowest id."""
    return jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1).astype(jnp.int32)


def generate_ids(
    model: Llama,
    grammar: Grammar,
    new_tokens: int,
    params: dict[str, Any],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    budgets: Int[Array, " B"],
) -> Answers:
    """Generate greedily after each prompt until its row ends by itself or has used up its budget.

    Args:
        tokens: prompts, padded on the right; `lengths` their true lengths.
        budgets: most tokens to generate in each row, at most `new_tokens`; 0 leaves a row alone.
    """
    rows, length = tokens.shape
    decode = functools.partial(model.apply, {"params": params}, method="decode")

    def choose(loop: _Loop, logits: Float[Array, "B V"], cache: KVCache) -> _Loop:
        token = greedy(logits, grammar.allowed(loop.grammar, budgets - loop.counts))
        active = ~loop.done
        ended = loop.ended | (active & (token == grammar.eos))
        counts = loop.counts + (active & ~ended)
        return _Loop(
            step=loop.step + 1,
            token=token,
            ids=jax.lax.dynamic_update_slice(loop.ids, token[:, None], (0, loop.step)),
            counts=counts,
            done=loop.done | ended | (counts >= budgets),
            ended=ended,
            grammar=grammar.advance(loop.grammar, token),
            cache=cache,
        )

    def body(loop: _Loop) -> _Loop:
        # The loop's token is number `step` of the answer, whose first one stands at position `lengths`.
        positions = (lengths + loop.step - 1)[:, None]
        decoded = decode(loop.token[:, None], loop.cache, positions)
        return choose(loop, decoded.logits[:, 0], decoded.cache)

    cache = model.empty_cache(rows, min(length + new_tokens, model.config.max_length))
    prefill = decode(
        tokens, cache, jnp.broadcast_to(jnp.arange(length), (rows, length)), fresh=True, at=jnp.maximum(lengths - 1, 0)
    )
    zero, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    start = _Loop(
        step=jnp.int32(0),
        token=zero,
        ids=jnp.zeros((rows, new_tokens), jnp.int32),
        counts=zero,
        done=budgets <= 0,
        ended=no,
        grammar=grammar.start(tokens, lengths),
        cache=cache,
    )
    loop = choose(start, prefill.logits[:, 0], prefill.cache)
    loop = jax.lax.while_loop(lambda loop: ~loop.done.all() & (loop.step < new_tokens), body, loop)
    return Answers(ids=loop.ids, counts=loop.counts, ended=loop.ended)
