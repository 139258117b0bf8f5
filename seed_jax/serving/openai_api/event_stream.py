"""Server-sent events: encoding, keep-alive comments, and the end of a stream whose client left or stopped reading."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from seed_jax.serving.openai_api.errors import ApiError, from_exception

PING_S = 15.0  # of silence, after which a comment tells proxies that the stream lives
DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
# JSON may hold them as they are, but clients that read with httpx's `iter_lines` end a line there.
_LINE_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client has closed the connection before its answer was complete."""


def encode_event(data: Mapping[str, Any], event: str | None = None) -> bytes:
    """Return one event; JSON has no raw line breaks, so that one `data:` line holds it."""
    name = f"event: {event}\n" if event else ""
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_LINE_BREAKS)
    return f"{name}data: {content}\n\n".encode("utf-8", "backslashreplace")


class EventStream(Response):
    """Send the encoded events of a generator as they come.

    The response begins with the first event, so that an error before it has its own status; an error after it is an
    event of its own. The generator is closed as soon as the client disconnects, when it accepts nothing for
    `send_timeout_s`, and when the whole answer takes longer than `timeout_s`.

    Args:
        events: encoded events.
        timeout_s: seconds that the answer may take.
        send_timeout_s: seconds that a client may take to accept an event.
        ping_s: seconds of silence before a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        timeout_s: float | None = None,
        send_timeout_s: float = 60.0,
        ping_s: float = PING_S,
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._timeout_s = timeout_s
        self._send_timeout_s = send_timeout_s
        self._ping_s = ping_s
        self._writing = asyncio.Lock()
        self._started = False
        self._last_write = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(one) for one in (self._pump(send), disconnected(receive), self._send_pings(send))]
        pump = tasks[0]
        try:
            await asyncio.wait(tasks[:2], timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            is_late = not any(task.done() for task in tasks[:2])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        error = None if pump.cancelled() else pump.exception()
        if is_late:
            error = timeout_error(self._timeout_s)
        if error is None or isinstance(error, _WriteError):
            return
        told = from_exception(error)
        if not self._started:
            await told.response()(scope, receive, send)
            return
        with contextlib.suppress(_WriteError):
            await self._write(send, encode_event(told.body()))
            await self._write(send, b"", last=True)

    async def _pump(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                await self._write(send, event)
        await self._write(send, b"", last=True)

    async def _send_pings(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._last_write = clock()
        while True:
            await asyncio.sleep(max(0.0, self._last_write + self._ping_s - clock()))
            if clock() >= self._last_write + self._ping_s:
                await self._write(send, _PING)

    async def _write(self, send: Send, body: bytes, *, last: bool = False) -> None:
        async with self._writing:
            self._last_write = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    if not self._started:
                        self._started = True
                        headers = self.raw_headers
                        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
                    await send({"type": "http.response.body", "body": body, "more_body": not last})
            except (TimeoutError, OSError) as error:
                raise _WriteError from error


class _WriteError(Exception):
    """The client does not accept what is sent."""


async def until_disconnect(request: Request, answer: Awaitable[T], timeout_s: float | None = None) -> T:
    """Await an answer, and cancel it when the client disconnects or the time is over.

    Args:
        request: the request; its body has been read.
        answer: the computation.
        timeout_s: seconds that it may take.

    Raises:
        ClientDisconnectedError: nobody reads the answer any more.
        ApiError: 504, the time is over.
    """
    task = asyncio.ensure_future(answer)
    # Not `request.is_disconnected`, which does not see a disconnection behind some middleware.
    listener = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait((task, listener), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if listener.done():
            raise ClientDisconnectedError
        raise timeout_error(timeout_s)
    finally:
        for one in (task, listener):
            one.cancel()
        await asyncio.gather(task, listener, return_exceptions=True)


async def gather_or_cancel(answers: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await several answers; the first error cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer) for answer in answers]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def timeout_error(timeout_s: float | None) -> ApiError:
    return ApiError(504, f"The answer took longer than {timeout_s:g} seconds.", code="timeout")


async def disconnected(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
