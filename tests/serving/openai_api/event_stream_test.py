"""Event streams: status of early errors, keep-alive comments, and the end of streams that nobody reads."""

import asyncio
import json

import pytest

from seed_jax.errors import UserError
from seed_jax.serving.engine import QueueFullError
from seed_jax.serving.openai_api.errors import ApiError
from seed_jax.serving.openai_api.event_stream import EventStream, encode_event, gather_or_cancel

SCOPE = {"type": "http"}


class Client:
    """The other end of a response: keeps what it gets, and may leave or stop reading."""

    def __init__(self, *, leaves_after=None, stops_after=None):
        self.messages = []
        self.left = asyncio.Event()
        self.leaves_after = leaves_after
        self.stops_after = stops_after

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if self.stops_after is not None and len(self.messages) >= self.stops_after:
            await asyncio.sleep(60)
        self.messages.append(message)
        if self.leaves_after is not None and len(self.messages) >= self.leaves_after:
            self.left.set()

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)


def run(generator, client_options=None, **options):
    """Send a stream to a client; return the client, and whether the generator was closed."""
    closed = []

    async def watched():
        try:
            async for event in generator():
                yield event
        finally:
            closed.append(True)

    async def main():
        client = Client(**(client_options or {}))
        await asyncio.wait_for(EventStream(watched(), **options)(SCOPE, client.receive, client.send), 20)
        return client

    return asyncio.run(main()), bool(closed)


async def two():
    yield b"data: 1\n\n"
    yield b"data: 2\n\n"


async def endless():
    while True:
        yield b"data: 1\n\n"
        await asyncio.sleep(0.01)


async def silent():
    yield b"data: 1\n\n"
    await asyncio.sleep(30)


def failing(error, after=0):
    async def generator():
        for number in range(after):
            yield b"data: %d\n\n" % number
        raise error

    return generator


def test_events_arrive_in_order_and_the_stream_ends():
    client, closed = run(two)
    assert client.status == 200
    assert dict(client.messages[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert client.body == b"data: 1\n\ndata: 2\n\n"
    assert client.messages[-1]["more_body"] is False
    assert closed


@pytest.mark.parametrize(
    ("error", "status"),
    [(ApiError(404, "no"), 404), (UserError("bad"), 400), (QueueFullError(3, 7.0), 429), (ValueError("secret"), 500)],
)
def test_an_error_before_the_first_event_has_its_own_status(error, status):
    client, _ = run(failing(error))
    assert client.status == status
    assert set(json.loads(client.body)["error"]) == {"message", "type", "param", "code"}
    assert b"secret" not in client.body
    if status == 429:
        assert dict(client.messages[0]["headers"])[b"retry-after"] == b"7"


def test_an_error_after_the_first_event_is_an_event():
    client, _ = run(failing(ValueError("secret"), after=1))
    assert client.status == 200
    *_, last = client.body.strip().split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "internal_error"
    assert b"secret" not in client.body
    assert client.messages[-1]["more_body"] is False


def test_a_client_that_leaves_ends_the_stream():
    _, closed = run(endless, {"leaves_after": 3})
    assert closed


def test_a_client_that_stops_reading_ends_the_stream():
    _, closed = run(endless, {"stops_after": 3}, send_timeout_s=0.1)
    assert closed


def test_comments_keep_a_silent_stream_alive_and_its_time_is_limited():
    client, closed = run(silent, ping_s=0.05, timeout_s=0.5)
    assert client.body.count(b": ping\n\n") >= 2
    assert json.loads(client.body.split(b"data: ")[-1])["error"]["code"] == "timeout"
    assert closed


def test_an_event_is_one_line_whatever_the_text():
    data = {"text": "line\nline\r\u2028\ud83d \u00e9"}
    encoded = encode_event(data, "name")
    name, line, *rest = encoded.split(b"\n")
    assert (name, rest) == (b"event: name", [b"", b""])
    assert json.loads(line.removeprefix(b"data: "))["text"].startswith("line\nline\r\u2028")


def test_the_first_error_of_several_answers_is_raised_as_itself():
    stopped = []

    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(True)

    async def wrong():
        await asyncio.sleep(0.01)
        raise UserError("wrong")

    with pytest.raises(UserError, match="wrong"):
        asyncio.run(gather_or_cancel([slow(), wrong()]))
    assert stopped


def test_no_character_of_an_answer_ends_a_line():
    text = "".join(map(chr, range(0x3000)))
    event = encode_event({"text": text}).decode()
    assert event.endswith("\n\n")
    (line,) = event[:-2].splitlines()
    assert json.loads(line.removeprefix("data: ")) == {"text": text}
