"""Generated ids as segments."""

import pytest

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment, TextSegment, parse
from tests.support import golden


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def test_text_and_images_in_order(vocabulary):
    codes = tuple(range(64, 96))
    image = vocabulary.image_ids(codes)
    ids = [*vocabulary.encode("a dog"), *image, *image, *vocabulary.encode("on the grass"), vocabulary.eos]
    expected = [TextSegment("a dog"), ImageSegment(codes), ImageSegment(codes), TextSegment("on the grass")]
    assert parse(ids, vocabulary) == expected
    assert parse([], vocabulary) == []
    assert expected[1].to_dict() == {"type": "image", "codes": list(codes)}


def test_image_tokens_that_make_no_image_are_kept_as_they_are(vocabulary):
    boi, eoi, code, text = vocabulary.boi, vocabulary.eoi, vocabulary.first_code, vocabulary.encode("a dog")
    short, long = [boi, *[code] * 31, eoi], [boi, *[code] * 33, eoi]
    unfinished, stray = [boi, code, code], [code, eoi]
    whole = [boi, *[code] * 32, eoi]
    for broken in (short, long, unfinished, stray, [eoi], [boi]):
        assert parse([*text, *broken, *text], vocabulary) == [
            TextSegment("a dog"),
            MalformedSegment(tuple(broken)),
            TextSegment("a dog"),
        ]
        assert parse([*broken, *whole], vocabulary) == [MalformedSegment(tuple(broken)), ImageSegment((0,) * 32)]
