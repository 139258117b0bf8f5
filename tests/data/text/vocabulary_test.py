"""Text ids exactly as the original's slow tokenizer; files of a wrong tokenizer are refused by name."""

import json
import pickle

import numpy as np
import pytest

from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.errors import UserError
from tests.support import golden


@pytest.fixture(scope="module")
def fixtures():
    return golden.load_json("text_tokenizer/fixtures.json")


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


CODES = list(range(32))
IMAGE = "<img>" + "".join(f"<img_{code:05d}>" for code in CODES) + "</img>"


def test_every_recorded_text(vocab, fixtures):
    for case in fixtures["cases"]:
        text = case["text"]
        assert vocab.encode(text) == case["ids"], text
        assert vocab.encode(text, bos=True) == case["ids_with_bos"], text
        assert vocab.pieces(case["ids"]) == case["tokens"], text
        assert vocab.decode(case["ids"]) == case["decoded"], text
        assert vocab.decode(case["ids"], skip_special=True) == case["decoded_skip_special"], text


def test_numbers_are_read_from_the_files(vocab, fixtures):
    found = (vocab.size, vocab.num_text, vocab.first_code, vocab.num_codes, vocab.boi, vocab.eoi)
    assert found == (830, 700, 700, 128, 828, 829)
    assert (vocab.unk, vocab.pad, vocab.bos, vocab.eos, vocab.codes_per_image) == (0, 0, 1, 2, 32)


@pytest.mark.parametrize(
    "parts",
    [
        ["USER: ", CODES, " what?"],
        [CODES, CODES],
        [CODES, " \n", CODES, "\n\nend "],
        ["a ", "b ", CODES],
        [" <s> a </s> ", CODES, "\u3000</s> x"],
        [],
        ["<img_000", CODES, "00005>"],
        ["<img_00001> ", " x ", CODES],
    ],
)
def test_interleaved_parts_are_encoded_as_one_string(vocab, parts):
    text = "".join(part if isinstance(part, str) else IMAGE for part in parts)
    assert vocab.encode_parts(parts) == vocab.encode(text)


def test_plain_text_never_becomes_a_special_token(vocab):
    text = "a </s> <img> <img_00003> b"
    plain = vocab.encode(text, plain=True)
    assert not {vocab.eos, vocab.boi, vocab.first_code + 3} & set(plain)
    assert vocab.decode(plain) == text
    parts = vocab.encode_parts([text, CODES, "</s>"], plain=True)
    assert parts == plain + vocab.image_ids(CODES) + vocab.encode("</s>", plain=True)


def test_image_ids(vocab):
    assert vocab.image_ids(np.arange(32, dtype=np.uint16)) == [828, *range(700, 732), 829]
    assert vocab.image_ids([], strict=False) == [828, 829]
    assert vocab.code_of(700) == 0
    assert vocab.code_of(827) == 127
    assert vocab.code_of(828) is None
    assert vocab.code_of(699) is None
    assert all(type(token) is int for token in vocab.image_ids(CODES))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (list(range(31)), r"shape \[31\], expected \[32\]"),
        (np.ones((1, 32), int), r"shape \[1, 32\]"),
        ([128] + [0] * 31, "from 0 to 128, expected integers from 0 to 127"),
        ([-1] + [0] * 31, "from -1 to 0"),
        (np.full(32, 0.5), "integers"),
    ],
)
def test_wrong_codes_are_refused(vocab, codes, message):
    with pytest.raises(UserError, match=message):
        vocab.image_ids(codes)


def test_foreign_ids_are_refused(vocab):
    for token in (830, -1):
        with pytest.raises(UserError, match=f"token {token} is outside the vocabulary of 830"):
            vocab.decode([5, token])


def test_broken_unicode_is_encoded(vocab):
    assert vocab.decode(vocab.encode("a\ud83d b")) == "a\ufffd b"
    assert vocab.decode(vocab.encode("\ud83d\ude00")) == "\U0001f600"
    assert vocab.decode(vocab.encode("nul\0 \x07 bell")) == "nul\0 \x07 bell"


def test_pickled_and_saved_copies_are_equal(vocab, tmp_path):
    vocab.save(tmp_path)
    assert (tmp_path / "tokenizer.model").stat().st_size > 0
    for copy in (pickle.loads(pickle.dumps(vocab)), Vocabulary.load(tmp_path)):
        assert copy.fingerprint == vocab.fingerprint
        assert copy.encode("a dog " + IMAGE) == vocab.encode("a dog " + IMAGE)
    assert not list(tmp_path.glob(".*"))


def test_transformers_reads_the_saved_files(vocab, tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == vocab.size
    assert theirs.convert_tokens_to_ids(["<img>", "</img>", "<img_00007>", "</s>"]) == [828, 829, 707, 2]


def test_delimiters_may_come_in_either_order_and_place(vocab, tmp_path):
    vocab.save(tmp_path)
    names = ["</img>", "<img>", "<img_00000>", "<img_00001>"]
    (tmp_path / "added_tokens.json").write_text(json.dumps({name: 700 + i for i, name in enumerate(names)}))
    other = Vocabulary.load(tmp_path)
    assert (other.boi, other.eoi, other.first_code, other.num_codes) == (701, 700, 702, 2)
    assert other.fingerprint != vocab.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("<img>"), "lacks <img>"),
        (lambda t: t.pop("</img>"), "lacks </img>"),
        (lambda t: t.pop("<img_00000>"), "lacks <img_00000>"),
        (lambda t: t.pop("<img_00005>"), "<img_00005> is missing, expected id 705"),
        (lambda t: t.update({"<img_00005>": 706, "<img_00006>": 705}), "<img_00005> has the id 706, expected id 705"),
        (lambda t: t.update({"<img_128>": 830}), "the key '<img_128>'"),
        (lambda t: t.update({"<pad>": 830}), "the key '<pad>'"),
        (lambda t: t.update({"<img>": 829}), "no token with id 828"),
        (lambda t: t.update({"<img>": "828"}), "gives <img> the id '828'"),
        (lambda t: [t.update({name: i + 1}) for name, i in list(t.items())], "no token with id 700"),
    ],
)
def test_wrong_added_tokens_are_named(vocab, tmp_path, change, message):
    vocab.save(tmp_path)
    path = tmp_path / "added_tokens.json"
    tokens = json.loads(path.read_text())
    change(tokens)
    path.write_text(json.dumps(tokens))
    with pytest.raises(UserError, match=message) as error:
        Vocabulary.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_missing_and_broken_files_are_named(vocab, tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer\.model"):
        Vocabulary.load(tmp_path)
    vocab.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Vocabulary.load(tmp_path)
    (tmp_path / "added_tokens.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list"):
        Vocabulary.load(tmp_path)
    vocab.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x00garbage")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Vocabulary.load(tmp_path)


def test_train_small(tmp_path, capfd):
    texts = ["A dog runs.\nA cat sleeps on the mat.", "Two dogs, 17 cats: 你好"]
    train_small(texts, tmp_path / "a", vocab_size=320, num_codes=64)
    train_small(texts, tmp_path / "b", vocab_size=320, num_codes=64)
    assert capfd.readouterr() == ("", "")
    for name in ("tokenizer.model", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    vocab = Vocabulary.load(tmp_path / "a")
    assert vocab.num_text <= 320
    assert (vocab.num_codes, vocab.first_code, vocab.boi, vocab.eoi) == (
        64,
        vocab.num_text,
        vocab.size - 2,
        vocab.size - 1,
    )
    for text in (*texts, " é 한  \n x ", "tab\t🙂"):
        assert vocab.decode(vocab.encode(text)) == text
    assert vocab.pieces(vocab.encode("17")) == ["▁", "1", "7"]


def test_train_small_needs_very_little_text(tmp_path):
    train_small(["a"], tmp_path, vocab_size=1000, num_codes=1)
    vocab = Vocabulary.load(tmp_path)
    assert vocab.num_text < 300
    assert vocab.decode(vocab.encode("a dog")) == "a dog"
    for texts, size, codes, message in (
        ([" \n"], 600, 8, "at least one non-blank line"),
        (["a"], 600, 0, "num_codes is 0"),
        (["a"], 10, 8, "10 pieces could not be trained"),
    ):
        with pytest.raises(UserError, match=message):
            train_small(texts, tmp_path / "x", vocab_size=size, num_codes=codes)
    assert not (tmp_path / "x").exists()
