"""Long documents in several samples: nothing is lost, nothing is torn."""

import numpy as np
import pytest

from seed_jax.data import templates
from seed_jax.data.templates.continuation import MIN_LENGTH, continued
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from tests.models.opt import cases as opt_cases
from tests.support import golden

WORDS = "the quiet dog rests beside a green river under old trees at night".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def image(number):
    return (np.arange(32) + number) % 128


def sentences(rng, count):
    return " ".join(f"{' '.join(rng.choice(WORDS, 7))}." for _ in range(count))


def fields(parts):
    return {
        "image_ids": [None if isinstance(part, str) else part for part in parts],
        "texts": [part if isinstance(part, str) else None for part in parts],
    }


def samples(vocab, parts, task="interleaved", **params):
    params = {"continued": True, "max_length": 200, **params}
    made = templates.make_template(f"pretrain.{task}", params, vocab)
    record = fields(parts) if task == "interleaved" else {"text": parts}
    return made.samples(record, np.random.default_rng(0))


def whole(vocab, parts, task="interleaved", **params):
    params = {"max_images": None, **params} if task == "interleaved" else {}
    record = fields(parts) if task == "interleaved" else {"text": parts}
    return templates.make_template(f"pretrain.{task}", params, vocab)(record, np.random.default_rng(0))


def shape(vocab, sample):
    """Return what a sample holds in order: `i` an image, `(i)` one that is not trained, `t` a text."""
    out, place = "", 1
    while place < len(sample) and sample.tokens[place] != vocab.eos:
        if sample.tokens[place] == vocab.boi:
            trained = sample.loss_mask[place : place + 34]
            assert trained.all() or not trained.any()
            assert sample.tokens[place + 33] == vocab.eoi
            out += "i" if trained[0] else "(i)"
            place += 34
        else:
            assert sample.loss_mask[place]
            out += "" if out.endswith("t") else "t"
            place += 1
    return out


def assert_whole_again(vocab, found, expected, length):
    """The trained tokens after BOS, one sample after the other, are those of the document; nothing is too long."""
    assert all(len(sample) <= length and sample.tokens[0] == vocab.bos for sample in found)
    trained = [sample.tokens[1:][sample.loss_mask[1:]] for sample in found]
    np.testing.assert_array_equal(np.concatenate(trained), expected.tokens[1:])
    assert [sample.tokens[-1] == vocab.eos for sample in found] == [False] * (len(found) - 1) + [True]


def test_a_document_that_fits_is_the_one_sample_it_always_was(vocab):
    (found,) = samples(vocab, [image(1), "a dog.", "a cat."], reverse_ratio=0.0)
    expected = whole(vocab, [image(1), "a dog.", "a cat."], reverse_ratio=0.0)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.loss_mask.tolist() == expected.loss_mask.tolist()


def test_cuts_lie_between_an_image_with_its_text_and_what_follows(vocab):
    rng = np.random.default_rng(0)
    parts = [part for number in range(9) for part in (image(number), sentences(rng, 2))]
    found = samples(vocab, parts, reverse_ratio=0.0)
    assert {shape(vocab, sample) for sample in found} <= {"itit", "ititit"}
    assert_whole_again(vocab, found, whole(vocab, parts, reverse_ratio=0.0), 200)
    found = samples(vocab, parts, reverse_ratio=1.0)  # every image stands after its text
    assert {shape(vocab, sample) for sample in found} <= {"titi", "tititi"}
    assert_whole_again(vocab, found, whole(vocab, parts, reverse_ratio=1.0), 200)


def test_a_long_text_goes_on_after_its_image_repeated(vocab):
    rng = np.random.default_rng(1)
    parts = ["before. ", image(1), image(2), sentences(rng, 40), image(3), "after."]
    found = samples(vocab, parts, reverse_ratio=0.0)
    shapes = [shape(vocab, sample) for sample in found]
    assert shapes[0] == "tiit"
    assert set(shapes[1:-1]) == {"(i)t"}
    assert shapes[-1] == "(i)tit"
    assert found[1].tokens[2:34].tolist() == (image(2) + vocab.first_code).tolist()  # the last image before the text
    assert_whole_again(vocab, found, whole(vocab, parts, reverse_ratio=0.0), 200)
    # After the swap the text stands first: it has no image yet, and its end stays with the image.
    found = samples(vocab, [image(1), sentences(rng, 40)], reverse_ratio=1.0)
    assert [shape(vocab, sample) for sample in found][:-1] == ["t"] * (len(found) - 1)
    assert shape(vocab, found[-1]) == "ti"
    assert np.flatnonzero(found[-1].tokens == vocab.boi)[0] > 20


def test_plain_text_is_cut_at_sentences(vocab):
    text = sentences(np.random.default_rng(2), 60)
    found = samples(vocab, text, "text")
    assert len(found) > 3
    for sample in found[:-1]:
        assert vocab.decode(sample.tokens[-1:].tolist()).endswith(".")
        assert len(sample) > 150
    assert_whole_again(vocab, found, whole(vocab, text, "text"), 200)
    unbroken = samples(vocab, "犬猫" * 300, "text")  # no blank, no full stop, several bytes a character
    assert_whole_again(vocab, unbroken, whole(vocab, "犬猫" * 300, "text"), 200)
    assert not any("\ufffd" in vocab.decode(sample.tokens.tolist(), skip_special=True) for sample in unbroken)


def test_no_sample_has_more_images_than_allowed(vocab):
    parts = [image(number) if number % 2 else "a dog." for number in range(1, 30)]
    found = samples(vocab, parts, reverse_ratio=0.0, max_images=3, max_length=2000)
    assert [sample.tokens.tolist().count(vocab.boi) for sample in found] == [3, 3, 3, 3, 3]
    assert_whole_again(vocab, found, whole(vocab, parts, reverse_ratio=0.0), 2000)


@pytest.mark.parametrize("seed", range(60))
def test_split_documents_concatenate_to_the_document(vocab, seed):
    rng = np.random.default_rng(seed)
    parts = [
        image(number) if rng.random() < 0.4 else sentences(rng, int(rng.choice([1, 2, 3, 30])))
        for number in range(int(rng.integers(1, 25)))
    ]
    length, swap = int(rng.integers(MIN_LENGTH, 400)), float(rng.integers(2))
    most = None if rng.random() < 0.5 else int(rng.integers(1, 8))
    found = samples(vocab, parts, reverse_ratio=swap, max_length=length, max_images=most)
    assert_whole_again(vocab, found, whole(vocab, parts, reverse_ratio=swap), length)
    assert all((sample.tokens == vocab.boi).sum() <= (most or 99) for sample in found)
    for sample, before in zip(found[1:], found, strict=False):
        shown, last = shape(vocab, sample), shape(vocab, before)
        if not swap and shown[0] == "t":
            assert last.endswith("t")
            assert "i" not in last[-2:] or len(before) < length  # a new text, not the rest of one


def test_the_literal_text_img_is_not_an_image(vocab):
    text = "look <img> here. " * 100
    found = samples(vocab, text, "text", max_length=150)
    assert_whole_again(vocab, found, whole(vocab, text, "text"), 150)


def test_dropped_documents_stay_dropped(vocab):
    (found,) = samples(vocab, "?? " * 300, "text")
    assert not found.kept


def test_bad_settings(vocab):
    with pytest.raises(UserError, match="continued needs a max_length of at least 128"):
        templates.make_template("pretrain.text", {"continued": True}, vocab)
    with pytest.raises(UserError, match="continued needs a max_length of at least 128"):
        templates.make_template("pretrain.interleaved", {"continued": True, "max_length": 100}, vocab)
    sample = whole(vocab, [np.arange(130) % 128, "text"], strict_images=False)
    with pytest.raises(UserError, match="too many codes"):
        continued(sample, vocab, MIN_LENGTH)


def test_texts_of_opt_are_split_after_sentences_too():
    """Its tokens are byte-level: names do not begin with U+2581."""
    vocab = opt_cases.vocabulary()
    parts = sentences(np.random.default_rng(0), 40)
    pieces = samples(vocab, parts, task="text", max_length=MIN_LENGTH)
    assert len(pieces) > 3
    texts = [vocab.decode(piece.tokens, skip_special=True) for piece in pieces]
    assert "".join(texts) == parts
    assert all(text.endswith(".") for text in texts)
