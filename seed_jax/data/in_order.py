"""Work done in other threads, results in order."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T, R = TypeVar("T"), TypeVar("R")
_END: Any = object()


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Map in parallel, results in order, never more than `window` of them ahead of the consumer."""
    ahead: deque[Any] = deque()
    for item in items:
        ahead.append(pool.submit(work, item))
        if len(ahead) >= window:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def read_ahead(reader: ThreadPoolExecutor, items: Iterable[T], window: int) -> Iterator[T]:
    """Take items in the one thread of `reader`, up to `window` of them ahead of the consumer."""
    iterator = iter(items)
    for item in in_order(reader, lambda _: next(iterator, _END), itertools.repeat(None), window):
        if item is _END:
            return
        yield item
