"""Turns: what a prompt repeats, what is dropped, what an interruption leaves."""

import pytest

from seed_jax.errors import UserError
from seed_jax.inference.chat.conversation import Conversation
from seed_jax.inference.chat.prompts import ASSISTANT, USER, Turn, build_prompt
from seed_jax.inference.generation.generator import Generation, Generator
from seed_jax.inference.generation.sampling_params import Settings
from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment, TextSegment
from tests.inference.generation.cases import SMALL, small, vocabulary

IMAGE = ImageSegment(tuple(range(32)))


class Recorder(Generator):
    """Stands in for a generator: remembers prompts and answers with what it was given."""

    def __init__(self, *answers):
        self.config, self.vocabulary = SMALL, vocabulary()
        self.prompts, self.answers = [], list(answers)

    def stream(self, request, chunk=4):
        self.prompts.append(request.prompt)
        segments = self.answers.pop(0)
        yield from segments
        yield Generation((), tuple(segments), "eos")


def say(text: str) -> list:
    return [TextSegment(text)]


@pytest.mark.parametrize("as_one", [False, True])
def test_a_prompt_repeats_the_turns_before(as_one):
    model = Recorder([TextSegment("a dog"), IMAGE], say("yes"))
    talk = Conversation(model, "vicuna", Settings(20), as_one=as_one)
    for words in ("what", "sure"):
        assert isinstance(list(talk.ask(say(words)))[-1], Generation)
    turns = [Turn(USER, say("what")), Turn(ASSISTANT, [TextSegment("a dog"), IMAGE]), Turn(USER, say("sure"))]
    assert model.prompts[1] == build_prompt(turns, "vicuna", vocabulary(), as_one=as_one)
    assert talk.dropped == 0


def test_what_does_not_fit_and_what_history_leaves_out_is_dropped():
    model = Recorder([IMAGE], [IMAGE], say("c"), say("d"))
    talk = Conversation(model, "vicuna", Settings(20))
    for words in ("one", "two", "three"):
        list(talk.ask(say(words)))
    assert talk.dropped == 2
    talk.history = 1
    list(talk.ask(say("four")))
    turns = [Turn(USER, say("three")), Turn(ASSISTANT, say("c")), Turn(USER, say("four"))]
    assert model.prompts[3] == build_prompt(turns, "vicuna", vocabulary())
    assert talk.dropped == 4
    talk.reset()
    assert talk.turns == []


def test_refused_turns_leave_no_trace_and_malformed_images_are_not_repeated():
    model = Recorder([TextSegment("a"), MalformedSegment((364, 310))], say("b"))
    talk = Conversation(model, "vicuna", Settings(20))
    with pytest.raises(UserError, match="The last turn alone has"):
        list(talk.ask([IMAGE] * 4))
    list(talk.ask(say("one")))
    list(talk.ask(say("two")))
    turns = [Turn(USER, say("one")), Turn(ASSISTANT, say("a")), Turn(USER, say("two"))]
    assert model.prompts == [
        build_prompt(turns[:1], "vicuna", vocabulary()),
        build_prompt(turns, "vicuna", vocabulary()),
    ]


def test_a_real_model_draws_when_asked_to_and_talks_on(tmp_path):
    talk = Conversation(small(), "llama2", Settings(40))
    *pieces, answer = talk.ask(say("cat"), mode="image")
    assert isinstance(pieces[0], ImageSegment)
    assert talk.turns[1].segments == answer.segments
    with pytest.raises(UserError, match="does not exist: create"):
        talk.save(tmp_path / "none" / "x.json")
