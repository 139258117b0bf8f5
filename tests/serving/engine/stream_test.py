"""Events reach one reader in order, in a thread or in an event loop, and a slow reader blocks nobody."""

import asyncio
import threading
import time

import pytest

from seed_jax.inference.generation.segments import Generation
from seed_jax.serving.engine import FinishedEvent, RequestStream, SlowReaderError, Timings, TokenEvent, Usage

END = FinishedEvent(Generation((1, 2), (), "eos"), Usage(3, 2, 0), Timings(0.0, 0.0, 0.0, 0.0))
EVENTS = [TokenEvent((1,)), TokenEvent((2,)), END]


def put_all(stream: RequestStream, pause_s: float = 0.01) -> threading.Thread:
    def run():
        for event in EVENTS[:-1]:
            time.sleep(pause_s)
            stream.put(event)
        time.sleep(pause_s)
        stream.finish(END)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_thread_and_an_event_loop_read_the_same():
    stream = RequestStream("a", lambda _: None, 10)
    put_all(stream)
    assert list(stream) == EVENTS
    assert list(stream) == []

    async def read():
        stream = RequestStream("b", lambda _: None, 10)
        put_all(stream)
        return [event async for event in stream]

    assert asyncio.run(read()) == EVENTS


def test_the_result_is_the_last_event():
    stream = RequestStream("a", lambda _: None, 10)
    put_all(stream)
    assert stream.result() is END

    async def read():
        stream = RequestStream("b", lambda _: None, 10)
        put_all(stream)
        return await stream.aresult()

    assert asyncio.run(read()) is END


def test_a_slow_reader_gets_an_error_and_the_writer_is_not_blocked():
    stream = RequestStream("a", lambda _: None, 2)
    assert [stream.put(event) for event in [*EVENTS[:2], EVENTS[0]]] == [True, True, False]
    stream.finish(END)  # what comes later is dropped
    assert [next(stream), next(stream)] == EVENTS[:2]
    with pytest.raises(SlowReaderError, match="2 events"):
        next(stream)
    assert list(stream) == []


def test_leaving_a_stream_cancels_what_is_unfinished():
    cancelled = []
    with RequestStream("a", cancelled.append, 10) as stream:
        stream.put(EVENTS[0])
        next(stream)
    assert cancelled == ["a"]
    with RequestStream("b", cancelled.append, 10) as stream:
        stream.finish(END)
        assert stream.result() is END
    assert cancelled == ["a"]


def test_an_event_loop_that_is_gone_does_not_disturb_the_writer():
    stream = RequestStream("a", lambda _: None, 10)

    async def give_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)

    asyncio.run(give_up())
    assert stream.put(EVENTS[0])
    assert next(stream) == EVENTS[0]
