"""Stop strings inside the compiled program: a finite automaton over the bytes of tokens.

The automaton of a set of strings (Aho and Corasick, 1975) is expanded into a transition table over whole tokens. A stop
string may begin and end inside tokens. Image tokens and control tokens interrupt the text.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt16

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.sampling_params import ImageConstraint
from seed_jax.typing import Leaf

_STATES_MULTIPLE = 16  # tables are padded to a multiple, so that few compiled programs serve all stop strings


@flax.struct.dataclass
class StopAutomata:
    """The automata of a batch. Every sequence starts in state 0; the last state means "a stop string occurred".

    Attributes:
        transitions: next state by automaton, state and token.
        index: the automaton of each sequence.
    """

    transitions: UInt16[Leaf, "U S V"]
    index: Int[Leaf, " B"]

    def advance(self, state: Int[Array, " B"], token: Int[Array, " B"]) -> Int[Array, " B"]:
        return self.transitions[self.index, state, token].astype(jnp.int32)

    def is_final(self, state: Int[Array, " B"]) -> Bool[Array, " B"]:
        return state == self.transitions.shape[1] - 1


@dataclasses.dataclass(frozen=True)
class StopStringCompiler:
    """Builds stop automata for one vocabulary and caches their tables."""

    vocabulary: Vocabulary

    def compile(self, stop: Sequence[tuple[str, ...]]) -> StopAutomata | None:
        """Return the automata for each sequence's stop strings; None if there are none in the batch."""
        if not any(stop):
            return None
        distinct = list(dict.fromkeys(stop))
        states = max(len(build_automaton(strings)) for strings in distinct) + 1
        states = -(-states // _STATES_MULTIPLE) * _STATES_MULTIPLE
        tables = [self._table(strings, states) for strings in distinct]
        tables += tables[:1] * ((1 << (len(tables) - 1).bit_length()) - len(tables))
        transitions: Any = np.stack(tables)
        index: Any = np.array([distinct.index(strings) for strings in stop], np.int32)
        return StopAutomata(transitions, index)

    @functools.lru_cache(maxsize=64)  # noqa: B019  one compiler per model, which lives as long as the model
    def _table(self, strings: tuple[str, ...], states: int) -> UInt16[np.ndarray, "S V"]:
        automaton = build_automaton(strings)
        final = len(automaton)
        step = np.vstack([automaton, np.full(256, final)])
        current = np.broadcast_to(np.arange(final + 1)[:, None], (final + 1, self.vocabulary.size)).copy()
        for column in self._token_bytes.T:
            present = column >= 0
            current[:, present] = step[current[:, present], column[present]]
        # Image tokens and control tokens have no bytes: the text after them does not continue the text before.
        empty = (self._token_bytes < 0).all(1)
        current[:final, empty] = 0
        table = np.zeros((states, self.vocabulary.size), np.uint16)
        table[:final] = np.where(current[:final] == final, states - 1, current[:final])
        table[-1] = states - 1
        return table

    @functools.cached_property
    def _token_bytes(self) -> Int[np.ndarray, "V L"]:
        """Return the bytes of every token, padded with -1."""
        texts = [self.vocabulary.token_bytes(token) for token in range(self.vocabulary.num_text)]
        padded = np.full((self.vocabulary.size, max(map(len, texts))), -1, np.int32)
        for token, text in enumerate(texts):
            padded[token, : len(text)] = list(text)
        return padded


class StopStringMatcher:
    """Finds stop strings in the tokens of one sequence on the host, by the rules of the compiled program.

    Args:
        vocabulary: of the model.
        stop: stop strings.
        constraint: text before its required images does not count.
        inside_image: whether the prompt ended inside an image.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: tuple[str, ...],
        constraint: ImageConstraint,
        inside_image: bool,
    ):
        self._vocabulary = vocabulary
        self._transitions = build_automaton(stop) if stop else None
        self._constraint = constraint
        self._inside_image = inside_image
        self._images_begun = 0
        self._state = 0

    def advance(self, token: int) -> bool:
        """Return whether a stop string is complete after one more token."""
        if self._transitions is None:
            return False
        begins = token == self._vocabulary.boi
        self._inside_image = (self._inside_image or begins) and token != self._vocabulary.eoi
        self._images_begun += begins
        constraint = self._constraint
        can_finish = not self._inside_image and self._images_begun >= constraint.min_images
        text = self._vocabulary.token_bytes(token)
        if not text or (constraint.enforced and not can_finish):
            self._state = 0
            return False
        for byte in text:
            self._state = int(self._transitions[self._state, byte])
            if self._state == len(self._transitions):
                return True
        return False


def truncate_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first stop string in it."""
    return text[: min([place for string in stop if (place := text.find(string)) >= 0], default=len(text))]


def partial_stop_length(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of a stop string."""
    longest = max(map(len, stop), default=0)
    return max(
        (n for n in range(1, min(longest, len(text)) + 1) if any(string.startswith(text[-n:]) for string in stop)),
        default=0,
    )


@functools.lru_cache(maxsize=64)
def build_automaton(strings: tuple[str, ...]) -> Int[np.ndarray, "N 256"]:
    """Return the transitions (state, byte) of the automaton that searches for all strings at once.

    State N, which has no row, is the final state; states of strings that contain another string are unreachable.
    """
    children: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for string in strings:
        node = 0
        for byte in string.encode():
            if byte not in children[node]:
                children.append({})
                children[node][byte] = len(children) - 1
            node = children[node][byte]
        ends.add(node)
    step = np.zeros((len(children), 256), np.int64)
    fallback = np.zeros(len(children), np.int64)
    queue = deque([0])
    while queue:
        node = queue.popleft()
        if fallback[node] in ends:
            ends.add(node)
        if node:
            step[node] = step[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = step[node, byte] if node else 0
            step[node, byte] = child
            queue.append(child)
    return np.where(np.isin(step, sorted(ends)), len(children), step)
