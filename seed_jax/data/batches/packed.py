"""Packed batches for training a language model, with an exact position that fits any number of hosts.

The global batch has as many rows as there are lanes. Lane r takes samples r, r + lanes, r + 2 lanes, ... of the stream
and packs its rows from them alone; a host makes the rows of its share of the lanes. A lane's position is the number
of its next sample (of a long document: and of the piece) and the numbers of those still waiting for a row, so it is a
few integers, the packer's remainder is part of it, and neither the rows nor their order depend on how many hosts there
are.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from seed_jax.data.batches.packing import Batch, Numbered, Sample, empty_batch, fill_row, take_row
from seed_jax.data.batches.record_stream import Drawn, Part, RecordStream
from seed_jax.data.batches.resume_state import FORMAT, check_same, own_lanes
from seed_jax.errors import UserError

LOOK_AHEAD = 32
CHUNK = 64  # samples whose places are computed together
MOST_DROPPED = 10_000  # in a row, before a lane gives up


def packed_batches(
    parts: Sequence[Part],
    *,
    rows: int,
    length: int,
    seed: int,
    lanes: Sequence[int] | None = None,
    tokenizer: str | None = None,
    shuffle: bool = True,
    look_ahead: int = LOOK_AHEAD,
    prefetch: int = 2,
) -> grain.IterDataset:
    """Return this host's endless share of packed batches, made ahead of time by a thread.

    `iter(...)` gives an iterator with `get_state` and `set_state`; the state is plain JSON data.

    Args:
        rows: rows of the global batch.
        lanes: those of the rows that this host makes, by default all of them.
        length: tokens of a row. Rendered samples that are longer are left out and counted.
        tokenizer: fingerprint of the image tokenizer whose codes are expected, or None to take any.
        look_ahead: samples a lane may keep waiting while it looks for one that fits.
        prefetch: batches made ahead.
    """
    stream = RecordStream(parts, seed, shuffle=shuffle, tokenizer=tokenizer)
    batches = PackedBatches(stream, rows=rows, length=length, lanes=lanes, look_ahead=look_ahead)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)


class PackedBatches(grain.IterDataset[Batch]):
    """Packed batches made in the calling thread; see `packed_batches`."""

    def __init__(
        self,
        stream: RecordStream,
        *,
        rows: int,
        length: int,
        lanes: Sequence[int] | None = None,
        look_ahead: int = LOOK_AHEAD,
    ):
        super().__init__()
        lanes = tuple(range(rows) if lanes is None else lanes)
        if not lanes or not set(lanes) <= set(range(rows)) or length < 2 or look_ahead < 1:
            raise UserError(
                f"Packed batches need lanes of 0 to {rows - 1}, rows of two or more tokens and a look-ahead of one or "
                f"more samples; found lanes {list(lanes)}, {length} tokens and look-ahead {look_ahead}."
            )
        if not all(part.render for part in stream.parts):
            raise UserError("Every part of a mixture for packed batches needs a template.")
        self.stream, self.length, self.look_ahead = stream, length, look_ahead
        self.num_lanes, self.lanes = rows, lanes

    def __iter__(self) -> "PackedIterator":
        return PackedIterator(self)

    def describe(self) -> dict[str, Any]:
        """Return everything the rows depend on except the templates."""
        return {**self.stream.describe(), "rows": self.num_lanes, "length": self.length, "look_ahead": self.look_ahead}


class PackedIterator(grain.DatasetIterator[Batch]):
    """Make one row from every lane of this host at each step."""

    def __init__(self, batches: PackedBatches):
        super().__init__()
        self._batches, self._step = batches, 0
        self._lanes = [_Lane(batches, number) for number in batches.lanes]

    def __next__(self) -> Batch:
        batch = empty_batch(len(self._lanes), self._batches.length)
        for row, lane in enumerate(self._lanes):
            fill_row(batch, row, lane.next_row())
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        lanes = {str(lane.number): lane.get_state() for lane in self._lanes}
        return {"format": FORMAT, "data": self._batches.describe(), "step": self._step, "lanes": lanes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a saved position; `state` may hold more lanes than this host's (see `merge_states`)."""
        check_same(state, self._batches.describe())
        states = own_lanes(state, self._batches.lanes)
        for lane, lane_state in zip(self._lanes, states, strict=True):
            lane.set_state(lane_state)
        self._step = state["step"]


class _Lane:
    """One row of every global batch, from every `num_lanes`-th sample."""

    def __init__(self, batches: PackedBatches, number: int):
        self.number, self._batches = number, batches
        self.set_state({"next": number, "piece": 0, "pending": [], "dropped": {}})

    def get_state(self) -> dict[str, Any]:
        pending = [[numbered.number, numbered.piece] for numbered in self._pending]
        return {"next": self._next, "piece": self._piece, "pending": pending, "dropped": dict(self._dropped)}

    def set_state(self, state: dict[str, Any]) -> None:
        # The sample to be drawn next, and which of its pieces, where it has several.
        self._next, self._piece = state["next"], state["piece"]
        self._dropped = Counter(state["dropped"])
        # Rendered again when a row needs them: a sample is a function of its number.
        waiting = self._batches.stream.draw(np.array([number for number, _ in state["pending"]], np.int64))
        self._pending = [
            Numbered(drawn.number, self._render(drawn)[piece], piece)
            for drawn, (_, piece) in zip(waiting, state["pending"], strict=True)
        ]
        self._coming: Iterator[Drawn] = iter(())
        self._pieces: deque[Numbered] = deque()

    def next_row(self) -> list[Sample]:
        batches = self._batches
        row = take_row(self._pending, self._draw, batches.length, batches.look_ahead)
        return [numbered.sample for numbered in row]

    def _draw(self) -> Numbered:
        for _ in range(MOST_DROPPED):
            numbered, part = self._take()
            reason = self._why_not(numbered.sample)
            if not reason:
                return numbered
            self._dropped[f"part {part}: {reason}"] += 1
        raise UserError(
            f"The last {MOST_DROPPED} samples were all left out ({dict(self._dropped)}): "
            f"check the templates and that rows of {self._batches.length} tokens are long enough."
        )

    def _take(self) -> tuple[Numbered, int]:
        """Return the next sample, or the next piece of a long one, with its part."""
        if not self._pieces:
            drawn = next(self._coming, None) or self._refill()
            pieces = enumerate(self._render(drawn))
            self._pieces.extend(
                Numbered(drawn.number, sample, piece) for piece, sample in pieces if piece >= self._piece
            )
            self._part = drawn.part
        numbered = self._pieces.popleft()
        if self._pieces:
            self._next, self._piece = numbered.number, numbered.piece + 1
        else:
            self._next, self._piece = numbered.number + self._batches.num_lanes, 0
        return numbered, self._part

    def _refill(self) -> Drawn:
        stride, stream = self._batches.num_lanes, self._batches.stream
        while self._next < len(stream):
            self._coming = stream.draw(self._next + stride * np.arange(CHUNK))
            if (drawn := next(self._coming, None)) is not None:
                return drawn
            self._next += stride * CHUNK  # of parts that are used up
        raise UserError(
            f"The parts of the mixture are used up after {len(stream):,} samples: give a part more cycles (or none, "
            "for no end), or train fewer steps."
        )

    def _render(self, drawn: Drawn) -> Sequence[Sample]:
        stream = self._batches.stream
        try:
            return stream.parts[drawn.part].render(drawn.record, drawn.rng())
        except UserError as error:
            raise UserError(f"{stream.where(drawn)}: {error}") from error

    def _why_not(self, sample: Sample) -> str:
        if not sample.kept or not len(sample.tokens):
            return sample.reason or "left out by the template"
        return "longer than the row" if len(sample.tokens) > self._batches.length else ""
