"""Conversations of the chat page on a service that plays a script."""

import asyncio
import dataclasses

import pytest

from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import USER
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from seed_jax.serving.engine.request import QueueFullError
from seed_jax.serving.messages import TextDelta
from seed_jax.serving.service import SeedService
from seed_jax.serving.web.session import AnswerOptions, ChatSession, ImagePart, user_message
from tests.serving.web.player import CODES, FINISHED, RED, SCRIPT, Player


def options(**changes) -> AnswerOptions:
    return dataclasses.replace(AnswerOptions(SamplingParams(20)), **changes)


def question(text: str, *images):
    segments = [*[ImageSegment(CODES) for _ in images], TextSegment(text)]
    return user_message(segments, images)


def ask(session: ChatSession, service: SeedService, message, given: AnswerOptions | None = None) -> None:
    async def run():
        async for _ in session.ask(service, message, given or options()):
            pass

    asyncio.run(run())


def test_text_and_images_keep_their_order_however_they_are_drawn():
    session, service = ChatSession("vicuna"), Player(*SCRIPT)
    ask(session, service, question("Draw.", RED), options(seed=7, system="Be kind."))
    sent, answer = session.messages
    assert (sent.role, sent.images) == (USER, (RED,))
    assert answer.segments == (
        TextSegment("A dog:\n"), ImageSegment(CODES), TextSegment("and a cat"), ImageSegment(CODES[::-1]),
    )  # fmt: skip
    assert [image is not None for image in answer.images] == [True, True]
    assert (answer.seed, answer.finish_reason) == (7, "eos")
    assert service.params[0].seed == 7
    assert service.prompts[0] == [("system", ("Be kind.",)), ("user", (ImageSegment(CODES), "Draw."))]
    assert service.num_requests == 0
    assert session.question is None


@pytest.mark.parametrize("by_stop", [True, False])
def test_an_answer_shows_its_progress_until_it_is_stopped(by_stop):
    session, service = ChatSession("vicuna"), Player(*SCRIPT[:7], 100)

    async def run():
        stream = session.ask(service, question("Draw."), options())
        async for _ in stream:
            parts = session.answer.parts
            if len(parts) == 4 and parts[1].step:
                break
        assert parts[0] == "A dog:\n"
        assert parts[1:] == [ImagePart(CODES, None, 3, 20), "and a cat", ImagePart()]
        assert session.is_answering
        if by_stop:
            session.stop()
            async for _ in stream:
                pass
        else:
            await stream.aclose()

    asyncio.run(run())
    # Stopped: what has been generated is kept, an image without all its codes is not.
    assert service.closed == 1
    assert service.num_requests == 0
    answer = session.messages[1]
    assert answer.segments == (TextSegment("A dog:\n"), ImageSegment(CODES), TextSegment("and a cat"))
    assert answer.images == (None,)
    assert answer.finish_reason == "interrupted"


def test_without_a_seed_every_answer_has_another():
    session, service = ChatSession("vicuna"), Player(FINISHED)
    for _ in range(3):
        ask(session, service, question("a"))
    assert len({message.seed for message in session.messages[1::2]}) == 3


def test_the_history_is_limited_and_what_is_left_out_is_counted():
    session, service = ChatSession("vicuna"), Player(TextDelta("yes"), FINISHED, num_dropped=2)
    for text in ("a", "b", "c", "d"):
        ask(session, service, question(text), options(max_history=2))
    assert [content for role, content in service.prompts[3] if role == "user"] == [("b",), ("c",), ("d",)]
    assert session.num_dropped == 2 + 2
    assert len(session.messages) == 8


@pytest.mark.parametrize("refusal", [UserError("too long"), QueueFullError(3, 1.0)])
def test_a_refused_message_leaves_no_trace(refusal):
    session = ChatSession("vicuna")
    ask(session, Player(TextDelta("yes"), FINISHED), question("a"))
    with pytest.raises(type(refusal)):
        ask(session, Player(refusal=refusal), question("b"))
    assert len(session.messages) == 2
    assert not session.is_answering


def test_a_failure_keeps_what_was_generated_before_it():
    session = ChatSession("vicuna")
    with pytest.raises(RuntimeError):
        ask(session, Player(TextDelta("half"), RuntimeError("out of memory")), question("a"))
    assert [message.segments for message in session.messages] == [(TextSegment("a"),), (TextSegment("half"),)]


def test_undo_removes_a_question_with_everything_after_it():
    session, service = ChatSession("vicuna"), Player(TextDelta("yes"), FINISHED)
    for text in ("a", "b", "c"):
        ask(session, service, question(text))
    assert session.undo().segments == (TextSegment("c"),)
    assert session.undo(0).segments == (TextSegment("a"),)
    assert session.messages == []
    assert session.undo() is None
    assert session.undo(5) is None
