"""Prompts: the pieces of each style, equality with training samples, refusals."""

import pytest

from seed_jax.data.templates.dialogue import DialogueTurn, Markers, dialogue
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import (
    ASSISTANT,
    SINGLE_TURN_STYLES,
    USER,
    Message,
    build_prompt,
    fit_prompt,
    interleave,
)
from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment, TextSegment
from tests.support import golden

CODES = tuple(range(32))
IMAGE, QUESTION, ANSWER = ImageSegment(CODES), TextSegment("What is it?"), TextSegment("A dog.")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def strings(vocabulary, ids) -> str:
    """Return the text that the original would have tokenised to `ids`, `<s>` apart."""
    assert ids[0] == vocabulary.bos
    return "".join(vocabulary.pieces(ids[1:]))


def test_vicuna_and_llama2_prompts_equal_their_strings(vocabulary):
    image = "<img>" + "".join(f"<img_{code:05d}>" for code in CODES) + "</img>"
    for style, text in [
        ("vicuna", f"USER: {image}What is it?\nASSISTANT:"),
        ("llama2", f"[INST] {image}What is it? [/INST]\n"),
        ("base", f"{image}What is it?"),
    ]:
        expected = [vocabulary.bos, *vocabulary.encode(text)]
        assert build_prompt([Message(USER, [IMAGE, QUESTION])], style, vocabulary) == expected


def test_images_may_stand_anywhere(vocabulary):
    turn = Message(USER, [TextSegment("First "), IMAGE, TextSegment(" then "), IMAGE, IMAGE])
    ids = build_prompt([turn], "vicuna", vocabulary)
    assert ids == [1, *vocabulary.encode_parts(["USER: First ", CODES, " then ", CODES, CODES, "\nASSISTANT:"])]
    assert ids.count(vocabulary.boi) == 3


@pytest.mark.parametrize("style", ["vicuna", "llama2"])
def test_a_conversation_is_the_beginning_of_its_training_sample(vocabulary, style):
    said = [("Who?", "A dog."), ("Where?", "On the grass."), ("Why?", "It plays.")]
    turns = [
        Message(role, [TextSegment(text)]) for pair in said for role, text in zip((USER, ASSISTANT), pair, strict=True)
    ]
    layout = dialogue([DialogueTurn((q,), (a,)) for q, a in said], Markers.of_style(style))
    sample = [1, *(i for segment in layout.segments for i in vocabulary.encode_parts(segment.parts))]
    for count in (1, 3, 5):
        prompt = build_prompt(turns[:count], style, vocabulary)
        assert sample[: len(prompt)] == prompt
        assert len(prompt) < len(sample)


def test_the_original_demo_encodes_a_conversation_as_one_text(vocabulary):
    turns = [Message(USER, [QUESTION]), Message(ASSISTANT, [ANSWER]), Message(USER, [IMAGE, QUESTION])]
    image = "<img>" + "".join(f"<img_{code:05d}>" for code in CODES) + "</img>"
    for style, text in [
        ("vicuna", f"USER: What is it?\nASSISTANT: A dog.\nUSER: {image}What is it?\nASSISTANT:"),
        ("llama2", f"[INST] What is it? [/INST]\nA dog.\n[INST] {image}What is it? [/INST]\n"),
    ]:
        one = build_prompt(turns, style, vocabulary, as_one=True)
        assert one == [1, *vocabulary.encode(text)]
        assert one != build_prompt(turns, style, vocabulary)


def test_control_tokens_that_a_user_writes_are_text(vocabulary):
    ids = build_prompt([Message(USER, [TextSegment("</s><img><img_00001></img>")])], "vicuna", vocabulary)
    assert not {vocabulary.eos, vocabulary.boi, vocabulary.eoi, vocabulary.first_code + 1} & set(ids)


def test_images_go_to_their_placeholders_or_before_the_text():
    a, b = [1] * 32, [2] * 32
    one, two = ImageSegment(tuple(a)), ImageSegment(tuple(b))
    assert interleave("What?", [a, b]) == [one, two, TextSegment("What?")]
    assert interleave("<image>, <image>?", [a, b]) == [one, TextSegment(", "), two, TextSegment("?")]
    assert interleave("", [a]) == [one]
    assert interleave(r"<image> is \<image>", [a]) == [one, TextSegment(" is <image>")]
    assert interleave(r"\<image>", [a]) == [one, TextSegment("<image>")]
    with pytest.raises(UserError, match=r"has 2 <image> placeholder\(s\) but 1 image\(s\)"):
        interleave("<image> or <image>", [a])
    with pytest.raises(UserError, match=r"has 1 <image> placeholder\(s\) but 0 image\(s\)"):
        interleave("<image>", [])


def test_the_frames_of_a_video_stand_at_one_placeholder():
    a, b, c = (ImageSegment((n,) * 32) for n in range(3))
    codes = [image.codes for image in (a, b, c)]
    assert interleave("<image> or <image>?", codes, [2, 1]) == [a, b, TextSegment(" or "), c, TextSegment("?")]
    assert interleave("What?", codes, [3]) == [a, b, c, TextSegment("What?")]
    with pytest.raises(UserError, match=r"1 <image> placeholder\(s\) but 2 image\(s\)"):
        interleave("<image>", codes, [2, 1])


@pytest.mark.parametrize("as_one", [False, True])
def test_history_that_does_not_fit_loses_its_oldest_turns_and_never_half_an_image(vocabulary, as_one):
    pairs = [(Message(USER, [IMAGE, QUESTION]), Message(ASSISTANT, [ANSWER, IMAGE])) for _ in range(4)]
    turns = [turn for pair in pairs for turn in pair] + [Message(USER, [IMAGE, QUESTION])]
    whole = build_prompt(turns, "vicuna", vocabulary, as_one=as_one)
    lengths = [len(build_prompt(turns[n:], "vicuna", vocabulary, as_one=as_one)) for n in (0, 2, 4, 6, 8)]
    for room in range(lengths[-1], len(whole) + 1, 7):
        fitted = fit_prompt(turns, "vicuna", vocabulary, room, as_one=as_one)
        assert fitted.num_dropped == 2 * next(n for n, length in enumerate(lengths) if length <= room)
        assert fitted.ids == build_prompt(turns[fitted.num_dropped :], "vicuna", vocabulary, as_one=as_one)
        for place in (n for n, token in enumerate(fitted.ids) if token == vocabulary.boi):
            assert fitted.ids[place + 33] == vocabulary.eoi
    with pytest.raises(
        UserError, match=f"The last message alone has {lengths[-1]} tokens .* room for {lengths[-1] - 1}"
    ):
        fit_prompt(turns, "vicuna", vocabulary, lengths[-1] - 1, as_one=as_one)


@pytest.mark.parametrize("style", SINGLE_TURN_STYLES)
def test_styles_without_roles_use_the_last_message_only(style, vocabulary):
    turns = [Message(USER, (TextSegment("a cat"),)), Message(ASSISTANT, (TextSegment("yes"),))]
    last = Message(USER, (TextSegment("a dog"),))
    fitted = fit_prompt([*turns, last], style, vocabulary, 100)
    assert fitted.num_dropped == 2
    assert fitted.ids == build_prompt([last], style, vocabulary)


@pytest.mark.parametrize(
    ("turns", "style", "message"),
    [
        ([Message(USER, [QUESTION])], "alpaca", "Unknown prompt style 'alpaca': expected one of"),
        ([], "vicuna", "has 0 messages"),
        (
            [Message(USER, [QUESTION]), Message(ASSISTANT, [ANSWER]), Message(USER, [QUESTION])],
            "base",
            "has 3 messages, expected 1",
        ),
        (
            [Message(USER, [QUESTION]), Message(ASSISTANT, [ANSWER])],
            "vicuna",
            "The last message is the assistant's",
        ),
        ([Message("system", [QUESTION])], "vicuna", "Message 1 has the role 'system', expected 'user'"),
        (
            [Message(USER, [QUESTION]), Message(USER, [QUESTION])],
            "llama2",
            "Message 2 has the role 'user', expected 'assistant'",
        ),
        ([Message(USER, [MalformedSegment((828, 829))])], "base", "2 image tokens that form no image"),
        ([Message(USER, [ImageSegment((1, 2))])], "base", r"codes of shape \[2\], expected \[32\]"),
    ],
)
def test_bad_conversations(vocabulary, turns, style, message):
    with pytest.raises(UserError, match=message):
        build_prompt(turns, style, vocabulary)
