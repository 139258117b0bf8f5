"""Which request gets which slot, and what is prefilled next: first come, first served. Plain Python without arrays."""

import collections
import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar


class Phase(enum.Enum):
    """Where a request is."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


@dataclasses.dataclass
class Row:
    """One slot of the KV cache that a request occupies: its prompt, or the negative prompt of guidance.

    Attributes:
        tokens: ids of the prompt.
        hashes: of its full blocks, see `PrefixCache.hashes`.
        slot: where its keys and values are; -1 while it waits.
        prefilled: tokens whose keys and values are in the cache.
        cached: how many of them came from the prefix cache.
    """

    tokens: Sequence[int]
    hashes: Sequence[bytes] = ()
    slot: int = -1
    prefilled: int = 0
    cached: int = 0

    @property
    def missing(self) -> int:
        """Return how many tokens are to be prefilled; the last one is left to the first decode step."""
        return len(self.tokens) - 1 - self.prefilled


class ScheduledRequest:
    """What the scheduler knows about a request.

    Args:
        rows: the prompt, and with guidance the negative prompt.
    """

    def __init__(self, rows: list[Row]):
        self.rows = rows
        self.phase = Phase.WAITING


T = TypeVar("T", bound=ScheduledRequest)


class Scheduler(Generic[T]):
    """Assigns slots in the order of arrival; a request that finds none keeps those behind it waiting.

    A guided request takes two neighbouring slots, 2 i and 2 i + 1.

    Args:
        num_slots: slots of the KV cache.
    """

    def __init__(self, num_slots: int):
        self.slots: list[T | None] = [None] * num_slots
        self.waiting: collections.deque[T] = collections.deque()
        self._prefilling: collections.deque[T] = collections.deque()

    @property
    def running(self) -> list[T]:
        """Return the requests that have slots, each once."""
        return list({id(request): request for request in self.slots if request is not None}.values())

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not any(request is not None for request in self.slots)

    def add(self, request: T) -> None:
        """Append a request to the queue."""
        self.waiting.append(request)

    def admit(self) -> list[T]:
        """Give free slots to waiting requests; return those that got one."""
        admitted = []
        while self.waiting:
            slots = self._find_slots(len(self.waiting[0].rows))
            if slots is None:
                break
            request = self.waiting.popleft()
            request.phase = Phase.PREFILL
            for row, slot in zip(request.rows, slots, strict=True):
                row.slot = slot
                self.slots[slot] = request
            self._prefilling.append(request)
            admitted.append(request)
        return admitted

    def next_prefill(self) -> tuple[T, Row] | None:
        """Return the row to prefill next; None if no request waits for its prefill."""
        while self._prefilling:
            request = self._prefilling[0]
            for row in request.rows:
                if row.missing > 0:
                    return request, row
            self._prefilling.popleft()
            request.phase = Phase.DECODE
        return None

    def decoding(self) -> Iterator[tuple[int, T]]:
        """Yield slot and request of the first row of every request that is decoded."""
        for slot, request in enumerate(self.slots):
            if request is not None and request.phase is Phase.DECODE and request.rows[0].slot == slot:
                yield slot, request

    def finish(self, request: T) -> None:
        """Take a request out, wherever it is; its slots are free at once."""
        if request.phase is Phase.WAITING:
            self.waiting.remove(request)
        elif request.phase is Phase.PREFILL:
            self._prefilling.remove(request)
        for row in request.rows:
            if row.slot >= 0 and self.slots[row.slot] is request:
                self.slots[row.slot] = None
        request.phase = Phase.FINISHED

    def _find_slots(self, count: int) -> tuple[int, ...] | None:
        free = [slot for slot, request in enumerate(self.slots) if request is None]
        if count == 2:
            return next(((slot, slot + 1) for slot in free if slot % 2 == 0 and slot + 1 in free), None)
        # Slots without a free neighbour first: pairs are kept for guided requests.
        alone = [slot for slot in free if slot ^ 1 not in free]
        return next(((slot,) for slot in alone or free), None)
