"""A stream shows nothing that it would have to take back, and leaves nothing out."""

import pytest

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment, TextSegment, parse
from seed_jax.inference.generation.streaming import Streamer
from tests.support import golden

CODES = tuple(range(32))


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def shown(vocabulary, ids, stops=(), step=1):
    """Return what a stream of `ids` shows after every `step` tokens, and at the end."""
    streamer = Streamer(vocabulary, stops)
    parts = [list(streamer.more(ids[:end])) for end in range(step, len(ids) + step, step)]
    return parts, list(streamer.rest(parse(ids, vocabulary)))


@pytest.mark.parametrize("step", [1, 4, 50])
def test_text_and_images_come_in_order_and_whole(vocabulary, step):
    ids = [*vocabulary.encode("A dog é"), *vocabulary.image_ids(CODES), *vocabulary.encode("and a cat")]
    parts, rest = shown(vocabulary, ids, step=step)
    pieces = [piece for part in parts for piece in part] + rest
    image = pieces.index(ImageSegment(CODES))
    assert "".join(piece.text for piece in pieces[:image]) == vocabulary.decode(vocabulary.encode("A dog é"))
    assert "".join(piece.text for piece in pieces[image + 1 :]) == "and a cat"
    assert all(isinstance(piece, TextSegment) for piece in pieces[:image] + pieces[image + 1 :])


def test_half_a_character_waits_for_the_other_half(vocabulary):
    ids = vocabulary.encode("日")
    parts, rest = shown(vocabulary, ids)
    assert len(parts) > 2
    assert [piece for part in parts for piece in part] == [TextSegment("日")]
    assert rest == []


def test_what_may_begin_a_stop_string_waits(vocabulary):
    ids = vocabulary.encode("go\nUSERS run")
    parts, _ = shown(vocabulary, ids, stops=("\nUSER:",))
    text = ""
    for part in parts:
        text += "".join(piece.text for piece in part)
        assert not text.endswith(("\n", "\nU", "\nUSER"))
    assert text == "go\nUSERS run"


def test_an_image_that_was_cut_short_is_shown_at_the_end(vocabulary):
    ids = [*vocabulary.encode("A"), *vocabulary.image_ids(CODES)[:20]]
    parts, rest = shown(vocabulary, ids)
    assert [piece for part in parts for piece in part] == [TextSegment("A")]
    assert rest == [MalformedSegment(tuple(ids[-20:]))]
