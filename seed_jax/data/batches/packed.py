"""Packed batches for language model training, with an exact position that is independent of the number of hosts.

Row r of the global batch is packed from samples r, r + batch_size, r + 2 * batch_size, ... of the stream only; every
host packs its share of the rows. The position of a row is the number of its next sample (for a long document also the
piece) and the numbers of the samples still waiting for space: a few integers, which include the packer's remainder.
Neither the rows nor their order depend on the number of hosts.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from seed_jax.data.batches.packing import PackedBatch, PendingSample, empty_batch, fill_row, next_row
from seed_jax.data.batches.record_stream import MixtureComponent, RecordStream, StreamSample
from seed_jax.data.batches.resume_state import FORMAT, check_same, own_rows
from seed_jax.data.templates.sample import RenderedSample
from seed_jax.errors import UserError

LOOK_AHEAD = 32
CHUNK = 64  # samples located together
MAX_CONSECUTIVE_DROPS = 10_000  # before a row gives up


def packed_batches(
    components: Sequence[MixtureComponent],
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    batch_indices: Sequence[int] | None = None,
    tokenizer: str | None = None,
    shuffle: bool = True,
    look_ahead: int = LOOK_AHEAD,
    prefetch: int = 2,
) -> grain.IterDataset:
    """Return this host's share of a sequence of packed batches, prefetched by a thread.

    The sequence has no end unless every component has `cycles`: then it ends once every sample is in a batch; the last
    batches hold shorter and empty rows, whose loss mask is 0.

        batches = iter(packed_batches(make_mixture(entries, vocabulary), batch_size=8, sequence_length=2048, seed=0))
        batch = next(batches)
        state = batches.get_state()  # plain JSON data, for `set_state`

    Args:
        components: the mixture; every component needs a template.
        batch_size: rows of the global batch.
        sequence_length: tokens per row. Longer rendered samples are dropped and counted.
        seed: seed of order and random choices.
        batch_indices: the rows of the global batch that this host packs; by default all.
        tokenizer: fingerprint of the image tokenizer whose codes are expected, or None to accept any.
        shuffle: whether to shuffle each dataset.
        look_ahead: maximum number of samples that a row keeps waiting while it searches for one that fits.
        prefetch: number of batches to prefetch.
    """
    stream = RecordStream(components, seed, shuffle=shuffle, tokenizer=tokenizer)
    batches = PackedBatches(
        stream,
        batch_size=batch_size,
        sequence_length=sequence_length,
        batch_indices=batch_indices,
        look_ahead=look_ahead,
    )
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)


class PackedBatches(grain.IterDataset[PackedBatch]):
    """Packed batches, computed in the calling thread; see `packed_batches`."""

    def __init__(
        self,
        stream: RecordStream,
        *,
        batch_size: int,
        sequence_length: int,
        batch_indices: Sequence[int] | None = None,
        look_ahead: int = LOOK_AHEAD,
    ):
        super().__init__()
        indices = tuple(range(batch_size) if batch_indices is None else batch_indices)
        if not indices or not set(indices) <= set(range(batch_size)) or sequence_length < 2 or look_ahead < 1:
            raise UserError(
                f"Packed batches need batch indices from 0 to {batch_size - 1}, a sequence length of at least 2 and a "
                f"look-ahead of at least 1; got indices {list(indices)}, length {sequence_length} and look-ahead "
                f"{look_ahead}."
            )
        if not all(component.render for component in stream.components):
            raise UserError("Every component of a mixture for packed batches needs a template.")
        self.stream = stream
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.batch_indices = indices
        self.look_ahead = look_ahead

    def __iter__(self) -> "PackedIterator":
        return PackedIterator(self)

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the rows, except the templates."""
        return {
            **self.stream.describe(),
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "look_ahead": self.look_ahead,
        }


class PackedIterator(grain.DatasetIterator[PackedBatch]):
    """Packs one row per batch index of this host at each step."""

    def __init__(self, batches: PackedBatches):
        super().__init__()
        self._batches = batches
        self._step = 0
        self._packers = [_RowPacker(batches, index) for index in batches.batch_indices]

    def __next__(self) -> PackedBatch:
        has_every_row = len(self._packers) == self._batches.batch_size
        if has_every_row and all(packer.has_ended for packer in self._packers):
            raise StopIteration  # one of several hosts continues with empty rows while the others have samples
        batch = empty_batch(len(self._packers), self._batches.sequence_length)
        for row, packer in enumerate(self._packers):
            fill_row(batch, row, packer.next_row())
        if has_every_row and not self._step and not batch["segment_ids"].any():
            raise UserError(
                f"No sample of the mixture fits into a row of {self._batches.sequence_length} tokens: check the "
                "templates and data.sequence_length."
            )
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position as plain JSON data."""
        rows = {str(packer.batch_index): packer.get_state() for packer in self._packers}
        return {"format": FORMAT, "data": self._batches.describe(), "step": self._step, "rows": rows}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a saved position; `state` may hold more rows than this host's (see `merge_states`)."""
        check_same(state, self._batches.describe())
        states = own_rows(state, self._batches.batch_indices)
        for packer, packer_state in zip(self._packers, states, strict=True):
            packer.set_state(packer_state)
        self._step = state["step"]


class _RowPacker:
    """Packs one row of every global batch from every `batch_size`-th sample."""

    def __init__(self, batches: PackedBatches, batch_index: int):
        self.batch_index = batch_index
        self._batches = batches
        self._component = 0
        self.set_state({"next": batch_index, "piece": 0, "pending": [], "dropped": {}})

    def get_state(self) -> dict[str, Any]:
        pending = [[sample.number, sample.piece] for sample in self._pending]
        state = {"next": self._next, "piece": self._piece, "pending": pending, "dropped": dict(self._dropped)}
        return state | {"ended": self.has_ended} if self._batches.stream.is_finite else state

    def set_state(self, state: dict[str, Any]) -> None:
        self.has_ended: bool = state.get("ended", False)
        # The next sample to draw, and the piece of it if it has several.
        self._next: int = state["next"]
        self._piece: int = state["piece"]
        self._dropped = Counter(state["dropped"])
        # Pending samples are rendered again: a sample is a function of its number.
        waiting = self._batches.stream.read(np.array([number for number, _ in state["pending"]], np.int64))
        self._pending = [
            PendingSample(sample.number, self._render(sample)[piece], piece)
            for sample, (_, piece) in zip(waiting, state["pending"], strict=True)
        ]
        self._upcoming: Iterator[StreamSample] = iter(())
        self._pieces: deque[PendingSample] = deque()

    def next_row(self) -> list[RenderedSample]:
        batches = self._batches
        row = next_row(self._pending, self._draw, batches.sequence_length, batches.look_ahead)
        if batches.stream.is_finite and not self._pending:
            # Know now whether another row follows; the sample is the next one that row would draw anyhow.
            following = self._draw()
            self._pending += [] if following is None else [following]
            self.has_ended = following is None
        return [sample.sample for sample in row]

    def _draw(self) -> PendingSample | None:
        """Return the next sample that is kept, or None at the end of the stream."""
        for _ in range(MAX_CONSECUTIVE_DROPS):
            drawn = self._take()
            if drawn is None:
                return None
            reason = self._drop_reason(drawn.sample)
            if not reason:
                return drawn
            self._dropped[f"component {self._component}: {reason}"] += 1
        raise UserError(
            f"The last {MAX_CONSECUTIVE_DROPS} samples were all dropped ({dict(self._dropped)}): check the templates, "
            f"and that rows of {self._batches.sequence_length} tokens are long enough."
        )

    def _take(self) -> PendingSample | None:
        """Return the next sample or the next piece of a long one, or None at the end of the stream."""
        if not self._pieces:
            sample = next(self._upcoming, None) or self._refill()
            if sample is None:
                return None
            self._component = sample.component
            for piece, rendered in enumerate(self._render(sample)):
                if piece >= self._piece:
                    self._pieces.append(PendingSample(sample.number, rendered, piece))
        drawn = self._pieces.popleft()
        if self._pieces:
            self._next = drawn.number
            self._piece = drawn.piece + 1
        else:
            self._next = drawn.number + self._batches.batch_size
            self._piece = 0
        return drawn

    def _refill(self) -> StreamSample | None:
        stride = self._batches.batch_size
        stream = self._batches.stream
        while self._next < len(stream):
            self._upcoming = stream.read(self._next + stride * np.arange(CHUNK))
            if (sample := next(self._upcoming, None)) is not None:
                return sample
            self._next += stride * CHUNK  # a chunk of exhausted components
        return None

    def _render(self, sample: StreamSample) -> Sequence[RenderedSample]:
        stream = self._batches.stream
        render = stream.components[sample.component].render
        assert render is not None
        try:
            return render(sample.record, sample.rng())
        except UserError as error:
            raise UserError(f"{stream.describe_location(sample)}: {error}") from error

    def _drop_reason(self, sample: RenderedSample) -> str:
        if not sample.kept or not len(sample.tokens):
            return sample.reason or "dropped by the template"
        return "longer than the row" if len(sample.tokens) > self._batches.sequence_length else ""
