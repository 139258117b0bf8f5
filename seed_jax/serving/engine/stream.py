"""The stream of events of one request, between the engine's thread and a reader in a thread or an event loop."""

import asyncio
import collections
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from seed_jax.serving.engine.request import Event, FinishedEvent, SlowReaderError, TokenEvent


class RequestStream:
    """The events of a request: iterate it, or iterate it asynchronously; one reader, once.

    Leaving it as a context manager cancels what is unfinished.

    Args:
        request_id: of the request.
        cancel: asks the engine to cancel the request.
        max_buffered_events: events that may wait for the reader.
    """

    def __init__(self, request_id: str, cancel: Callable[[str], None], max_buffered_events: int):
        self.request_id = request_id
        self._cancel = cancel
        self._limit = max_buffered_events
        self._events: collections.deque[Event] = collections.deque()
        self._condition = threading.Condition()
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._error: Exception | None = None
        self._closed = False  # nothing more will be put
        self._ended = False  # the reader got the last event or the error

    def cancel(self) -> None:
        """Cancel the request; its last event is a `FinishedEvent` with finish_reason "interrupted"."""
        self._cancel(self.request_id)

    def result(self) -> FinishedEvent:
        """Wait for the end and return the last event."""
        for event in self:
            if isinstance(event, FinishedEvent):
                return event
        raise RuntimeError(f"the events of request {self.request_id} were read before")

    async def aresult(self) -> FinishedEvent:
        """Wait for the end in an event loop and return the last event."""
        async for event in self:
            if isinstance(event, FinishedEvent):
                return event
        raise RuntimeError(f"the events of request {self.request_id} were read before")

    def put(self, event: TokenEvent) -> bool:
        """Add an event; called by the engine. Returns False if the reader is too slow, which ends the stream."""
        with self._condition:
            if self._closed:
                return True
            if len(self._events) < self._limit:
                self._events.append(event)
                self._wake()
                return True
        self.fail(SlowReaderError(f"Request {self.request_id}: {self._limit} events waited for their reader."))
        return False

    def finish(self, event: FinishedEvent) -> None:
        """Add the last event; called by the engine."""
        with self._condition:
            if not self._closed:
                self._events.append(event)
                self._closed = True
                self._wake()

    def fail(self, error: Exception) -> None:
        """Let the reader raise `error` after the events so far; called by the engine."""
        with self._condition:
            if not self._closed:
                self._error = error
                self._closed = True
                self._wake()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._condition:
            self._condition.wait_for(lambda: self._events or self._closed)
            return self._next(StopIteration)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while True:
            with self._condition:
                if self._events or self._closed:
                    return self._next(StopAsyncIteration)
                wakened = asyncio.Event()
                self._reader = (asyncio.get_running_loop(), wakened)
            await wakened.wait()

    def __enter__(self) -> "RequestStream":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._ended:
            self.cancel()

    async def __aenter__(self) -> "RequestStream":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.__exit__()

    def _next(self, end: type[Exception]) -> Event:
        if self._events:
            event = self._events.popleft()
            self._ended = isinstance(event, FinishedEvent)
            return event
        already, self._ended = self._ended, True
        if self._error is not None and not already:
            raise self._error
        raise end

    def _wake(self) -> None:
        self._condition.notify_all()
        if self._reader is not None:
            loop, wakened = self._reader
            self._reader = None
            with contextlib.suppress(RuntimeError):  # the event loop was closed
                loop.call_soon_threadsafe(wakened.set)
