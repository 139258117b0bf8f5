"""Stop strings inside the program: an automaton over the bytes of tokens tells when an answer's text holds one of them.

A stop string may begin and end inside tokens. Image tokens interrupt the text.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt16

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.typing import Leaf

BLANK = "\u2581"  # SentencePiece's sign for a space
_STATES_STEP = 16  # the number of states is filled up to a multiple, so that few programs serve all stop strings
MOST_BYTES = 1024  # of the stop strings of a request


@flax.struct.dataclass
class Stops:
    """The automata of a batch; a row is in state 0 at first and in the last state once a stop string has come.

    Attributes:
        table: the next state, by automaton, state and token.
        which: each row's automaton.
    """

    table: UInt16[Leaf, "U S V"]
    which: Int[Leaf, " B"]

    def advance(self, state: Int[Array, " B"], token: Int[Array, " B"]) -> Int[Array, " B"]:
        return self.table[self.which, state, token].astype(jnp.int32)

    def reached(self, state: Int[Array, " B"]) -> Bool[Array, " B"]:
        return state == self.table.shape[1] - 1


@dataclasses.dataclass(frozen=True)
class StopTables:
    """Makes automata for a vocabulary; remembers those it made."""

    vocabulary: Vocabulary

    def of(self, stops: Sequence[tuple[str, ...]]) -> Stops | None:
        """Return the automata of rows' stop strings; None where no row has any."""
        if not any(stops):
            return None
        distinct = list(dict.fromkeys(stops))
        states = max(len(_automaton(strings)) for strings in distinct) + 1
        states = -(-states // _STATES_STEP) * _STATES_STEP
        tables = [self._table(strings, states) for strings in distinct]
        tables += tables[:1] * ((1 << (len(tables) - 1).bit_length()) - len(tables))
        which = np.array([distinct.index(strings) for strings in stops], np.int32)
        return Stops(np.stack(tables), which)

    @functools.lru_cache(maxsize=64)  # noqa: B019  one object a model, as long as the model
    def _table(self, strings: tuple[str, ...], states: int) -> UInt16[np.ndarray, "S V"]:
        automaton = _automaton(strings)
        last = len(automaton)  # the state after a stop string, which is never left
        step = np.vstack([automaton, np.full(256, last)])
        current = np.broadcast_to(np.arange(last + 1)[:, None], (last + 1, self.vocabulary.size)).copy()
        for column in self._bytes.T:
            given = column >= 0
            current[:, given] = step[current[:, given], column[given]]
        # Image tokens and control tokens have no bytes: what comes after them is no continuation of the text before.
        silent = (self._bytes < 0).all(1)
        current[:last, silent] = 0
        table = np.zeros((states, self.vocabulary.size), np.uint16)
        table[:last] = np.where(current[:last] == last, states - 1, current[:last])
        table[-1] = states - 1
        return table

    @functools.cached_property
    def _bytes(self) -> Int[np.ndarray, "V L"]:
        """Return every token's bytes, -1 where it has no more."""
        controls = {self.vocabulary.unk, self.vocabulary.bos, self.vocabulary.eos}
        texts = [
            b"" if token in controls else _bytes_of(piece)
            for token, piece in enumerate(self.vocabulary.pieces(range(self.vocabulary.num_text)))
        ]
        rows = np.full((self.vocabulary.size, max(map(len, texts))), -1, np.int32)
        for token, text in enumerate(texts):
            rows[token, : len(text)] = list(text)
        return rows


def check_stops(stops: Sequence[str]) -> None:
    if any(not stop for stop in stops):
        raise UserError("A stop string is empty: give at least one character.")
    if sum(len(stop.encode()) for stop in stops) > MOST_BYTES:
        raise UserError(f"The stop strings have more than {MOST_BYTES} bytes together: give shorter or fewer ones.")


def cut(text: str, stops: Sequence[str]) -> str:
    """Return `text` up to the first stop string in it."""
    return text[: min([place for stop in stops if (place := text.find(stop)) >= 0], default=len(text))]


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may turn out to begin a stop string."""
    longest = max(map(len, stops), default=0)
    return max(
        (n for n in range(1, min(longest, len(text)) + 1) if any(stop.startswith(text[-n:]) for stop in stops)),
        default=0,
    )


def _bytes_of(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(BLANK, " ").encode()


@functools.lru_cache(maxsize=64)
def _automaton(strings: tuple[str, ...]) -> Int[np.ndarray, "N 256"]:
    """Return the transitions of the automaton that searches for all strings at once (Aho and Corasick, 1975).

    State N, which has no row, stands for "found"; the states of strings that hold another one are never reached.
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
    waiting = deque([0])
    while waiting:
        node = waiting.popleft()
        if fallback[node] in ends:
            ends.add(node)
        if node:
            step[node] = step[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = step[node, byte] if node else 0
            step[node, byte] = child
            waiting.append(child)
    return np.where(np.isin(step, sorted(ends)), len(children), step)
