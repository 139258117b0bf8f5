"""What a beam search carries from step to step."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seed_jax.inference.grammar import GrammarState
from seed_jax.inference.leaves import Leaf
from seed_jax.models.llama import KVCache


@flax.struct.dataclass
class Beams:
    """C sequences of each row, the best first; N is the most tokens that may be generated.

    Attributes:
        scores: log p of running beams, log p / length ** penalty of finished ones.
        counts: tokens, EOS left out.
        ended, stopped: by EOS, by a stop string.
        finished: False where the list of finished beams still has a vacant place.
    """

    ids: Int[Leaf, "B C N"]
    scores: Float[Leaf, "B C"]
    counts: Int[Leaf, "B C"]
    ended: Bool[Leaf, "B C"]
    stopped: Bool[Leaf, "B C"]
    finished: Bool[Leaf, "B C"]

    def take(self, index: Int[Array, "B D"]) -> "Beams":
        return jax.tree.map(lambda leaf: take(leaf, index), self)

    def best(self, scores: Float[Array, "B C"], count: int) -> tuple["Beams", Int[Array, "B D"]]:
        """Return the `count` beams with the highest `scores`, which become theirs, and where they stood."""
        scores, index = jax.lax.top_k(scores, count)
        return self.take(index).replace(scores=scores), index


@flax.struct.dataclass
class Candidates:
    """Continuations of the running beams, and which of them are at their end."""

    beams: Beams
    parents: Int[Leaf, "B C"]
    token: Int[Leaf, "B C"]
    grammar: GrammarState
    stop: Int[Leaf, " BC"]
    at_end: Bool[Leaf, "B C"]


@flax.struct.dataclass
class BeamState:
    """What the loop carries; R = B K."""

    step: Int[Leaf, ""]
    token: Int[Leaf, " M"]
    running: Beams
    grammar: GrammarState  # of the running beams
    stop: Int[Leaf, " R"]
    finished: Beams
    improvable: Bool[Leaf, " B"]
    done: Bool[Leaf, " B"]
    lengths: Int[Leaf, " M"]
    cache: KVCache


def take(leaf: Array, index: Int[Array, "B D"]) -> Array:
    return jnp.take_along_axis(leaf, index.reshape(*index.shape, *(1,) * (leaf.ndim - 2)), axis=1)
