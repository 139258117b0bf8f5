"""Work done in parallel, results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T, R = TypeVar("T"), TypeVar("R")


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Map in parallel, results in order, never more than `window` of them ahead of the consumer."""
    ahead: deque[Any] = deque()
    for item in items:
        ahead.append(pool.submit(work, item))
        if len(ahead) >= window:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
