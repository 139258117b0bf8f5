"""Caption cleaning by literals (spec A.9)."""

import pytest

from seed_jax.data.text.bert import clean


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Dog.", "a dog"),
        ('He said: "Stop!" (twice)', "he said stop twice"),
        ("a*b#c;d~e", "a b c d e"),
        ("  many \n\t  spaces  ", "many spaces"),
        ("kept: it's, 50% - and? /", "kept it's, 50% - and? /"),
        ("...", ""),
    ],
)
def test_literals(caption, expected):
    assert clean(caption) == expected


def test_the_first_fifty_words_stay():
    assert clean(" ".join(str(i) for i in range(60))).split() == [str(i) for i in range(50)]
