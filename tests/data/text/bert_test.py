"""BERT's WordPiece equals transformers' own slow tokenizer, and frames texts as the original does."""

import random

import numpy as np
import pytest

from seed_jax.data.text.bert import DEC_TOKEN, FILE, BertVocabulary, train_small
from seed_jax.errors import UserError

TEXTS = (
    "A photo of a café, naïve Ångström!",
    "two dogs' running in the grass-field 中文字 mixed漢字text",
    "tab\tnew\nline\u00a0nbsp zero\u0301 École İstanbul ß Σίσυφος 100% $5.00 ^caret `tick` x",
)


@pytest.fixture(scope="module")
def vocabulary():
    return train_small(TEXTS, 300)


def test_equals_transformers(vocabulary, tmp_path):
    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    vocabulary.save(tmp_path / FILE)
    theirs = legacy.BertTokenizerLegacy(str(tmp_path / FILE))
    rng = random.Random(0)
    characters = [*"".join(TEXTS), *"  ,.-'\u0301\u00ad\u200b\u2028\u3000ﬁ①½한글”“—…€£\x00\x1c\x85\ufffd"]
    texts = ["".join(rng.choices(characters, k=rng.randrange(30))) for _ in range(2000)]
    texts += ["".join(chr(rng.randrange(32, 0x3000)) for _ in range(8)) for _ in range(500)]
    for text in [*TEXTS, *texts, "x" * 101, "x" * 100]:
        assert vocabulary.encode(text) == theirs.encode(text, add_special_tokens=False), repr(text)


def test_pad_truncates_and_pads(vocabulary):
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    short = vocabulary.pad("photo of", 6)
    expected = [ids["[CLS]"], ids["photo"], ids["of"], ids["[SEP]"], ids["[PAD]"], ids["[PAD]"]]
    np.testing.assert_array_equal(short.ids, expected)
    np.testing.assert_array_equal(short.mask, [True] * 4 + [False] * 2)
    cut = vocabulary.pad("a photo of a photo", 4)
    np.testing.assert_array_equal(cut.ids, [ids["[CLS]"], ids["a"], ids["photo"], ids["[SEP]"]])
    assert cut.mask.all()


def test_names_of_special_tokens_in_a_text_are_text(vocabulary):
    special = {vocabulary.pieces.index(name) for name in ("[SEP]", "[CLS]", "[PAD]")}
    assert not special & set(vocabulary.encode("a [SEP] [CLS] [PAD]"))


def test_dec_comes_last_and_survives_a_round_trip(vocabulary, tmp_path):
    assert vocabulary.pieces[-1] == DEC_TOKEN
    vocabulary.save(tmp_path / FILE)
    assert BertVocabulary.load(tmp_path).pieces == vocabulary.pieces
    (tmp_path / FILE).write_text("\n".join(vocabulary.pieces[:-1]) + "\n", encoding="utf-8")  # as published
    assert BertVocabulary.load(tmp_path / FILE).pieces == vocabulary.pieces


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        BertVocabulary.load(tmp_path)
    (tmp_path / FILE).write_text("hello\nworld\n")
    with pytest.raises(UserError, match=r"lacks \[PAD\]"):
        BertVocabulary.load(tmp_path)
    with pytest.raises(UserError, match="too small"):
        train_small(TEXTS, 20)
