"""Conversations: which messages a prompt contains, which are dropped, what a refused message leaves."""

import pytest

from seed_jax.errors import UserError
from seed_jax.inference.chat.conversation import Conversation
from seed_jax.inference.chat.prompts import ASSISTANT, USER, Message, build_prompt
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, ImageSegment, MalformedSegment, TextSegment
from tests.inference.generation.cases import SMALL, small, vocabulary

IMAGE = ImageSegment(tuple(range(32)))


class Recorder(Generator):
    """Stands in for a generator: remembers prompts and answers with what it was given."""

    def __init__(self, *answers):
        self.config, self.vocabulary = SMALL, vocabulary()
        self.prompts, self.answers = [], list(answers)

    def stream(self, request, chunk_tokens=4, interrupt=None):
        self.prompts.append(request.prompt)
        segments = self.answers.pop(0)
        yield from segments
        yield Generation((), tuple(segments), "eos")


def say(text: str) -> list:
    return [TextSegment(text)]


@pytest.mark.parametrize("as_one", [False, True])
def test_a_prompt_contains_the_earlier_messages(as_one):
    model = Recorder([TextSegment("a dog"), IMAGE], say("yes"))
    conversation = Conversation(model, "vicuna", SamplingParams(20), as_one=as_one)
    for words in ("what", "sure"):
        assert isinstance(list(conversation.ask(say(words)))[-1], Generation)
    messages = [
        Message(USER, say("what")),
        Message(ASSISTANT, [TextSegment("a dog"), IMAGE]),
        Message(USER, say("sure")),
    ]
    assert model.prompts[1] == build_prompt(messages, "vicuna", vocabulary(), as_one=as_one)
    assert conversation.num_dropped == 0


def test_what_does_not_fit_and_what_history_leaves_out_is_dropped():
    model = Recorder([IMAGE], [IMAGE], say("c"), say("d"))
    conversation = Conversation(model, "vicuna", SamplingParams(20))
    for words in ("one", "two", "three"):
        list(conversation.ask(say(words)))
    assert conversation.num_dropped == 2
    conversation.max_history = 1
    list(conversation.ask(say("four")))
    messages = [Message(USER, say("three")), Message(ASSISTANT, say("c")), Message(USER, say("four"))]
    assert model.prompts[3] == build_prompt(messages, "vicuna", vocabulary())
    assert conversation.num_dropped == 4
    conversation.reset()
    assert conversation.messages == []


def test_refused_messages_leave_no_trace_and_malformed_images_are_not_repeated():
    model = Recorder([TextSegment("a"), MalformedSegment((364, 310))], say("b"))
    conversation = Conversation(model, "vicuna", SamplingParams(20))
    with pytest.raises(UserError, match="The last message alone has"):
        list(conversation.ask([IMAGE] * 4))
    list(conversation.ask(say("one")))
    list(conversation.ask(say("two")))
    messages = [Message(USER, say("one")), Message(ASSISTANT, say("a")), Message(USER, say("two"))]
    assert model.prompts == [
        build_prompt(messages[:1], "vicuna", vocabulary()),
        build_prompt(messages, "vicuna", vocabulary()),
    ]


def test_a_real_model_draws_when_asked_to_and_conversations_on():
    conversation = Conversation(small(), "llama2", SamplingParams(40))
    *pieces, answer = conversation.ask(say("cat"), mode="image", seed=3)
    assert isinstance(pieces[0], ImageSegment)
    assert conversation.messages[1].segments == answer.segments
    assert (conversation.messages[1].seed, conversation.messages[1].finish_reason) == (3, answer.finish_reason)


def test_a_prepared_turn_joins_the_history_when_it_is_recorded_and_leaves_it_when_undone():
    conversation = Conversation(Recorder(), "vicuna", SamplingParams(20))
    turn = conversation.prepare(say("one"))
    assert conversation.messages == []
    conversation.record(turn, Generation((), (TextSegment("a"),), "eos"))
    assert [message.role for message in conversation.messages] == [USER, ASSISTANT]
    undone = conversation.undo()
    assert undone is not None
    assert list(undone.segments) == say("one")
    assert conversation.messages == []
    assert conversation.undo() is None
