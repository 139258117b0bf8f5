"""OPT's text tokenizer against the recorded ids of transformers' slow tokenizer."""

import json
import pickle
import shutil

import pytest

from seed_jax.data.text.byte_pair import BytePairModel
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from tests.models.opt.cases import vocabulary
from tests.support import golden


def test_ids_and_texts_equal_the_original():
    cases = golden.load_json("opt_tiny/tokenizer_fixtures.json")
    assert len(cases) > 10
    for case in cases:
        ids = vocabulary().encode(case["text"], bos=True)
        assert ids == case["ids"], case["text"]
        assert vocabulary().decode(ids, skip_special=True) == case["decoded"]


def test_control_and_image_tokens():
    vocab = vocabulary()
    assert (vocab.bos, vocab.eos, vocab.unk, vocab.pad) == (2, 2, 2, 1)
    assert (vocab.size, vocab.num_text, vocab.first_code, vocab.boi, vocab.eoi) == (566, 500, 500, 564, 565)
    assert vocab.forbidden_tokens == (0, 1, 3)  # not the end of text, which is also its begin
    codes = list(range(32))
    ids = vocab.encode_parts(["a photo", codes])
    assert ids == [*vocab.encode("a photo"), 564, *range(500, 532), 565]
    assert vocab.encode("<img_00003>") == [503]
    assert 503 not in vocab.encode("<img_00003>", plain=True)
    assert vocab.token_bytes(vocab.encode(" ")[0]) == b" "
    assert vocab.token_bytes(2) == vocab.token_bytes(564) == b""


def test_saved_files_are_read_again(tmp_path):
    vocabulary().save(tmp_path)
    read = Vocabulary.load(tmp_path)
    assert read.fingerprint == vocabulary().fingerprint == pickle.loads(pickle.dumps(read)).fingerprint
    assert read.encode("a photo of two dogs") == vocabulary().encode("a photo of two dogs")


def test_fast_tokenizer_alone_is_enough(tmp_path):
    model = BytePairModel.load(golden.path("opt_tiny/tokenizer"))
    fast = {"model": {"type": "BPE", "vocab": model.vocab, "merges": [" ".join(pair) for pair in model.merges]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast))
    read = BytePairModel.load(tmp_path)
    assert (read.vocab, read.merges) == (model.vocab, model.merges)


def test_rows_that_the_tokenizer_does_not_use_are_never_generated():
    names = [*(f"<img_{code:05d}>" for code in range(4)), "<img>", "</img>"]
    model = BytePairModel.load(golden.path("opt_tiny/tokenizer"))
    vocab = Vocabulary(model, {name: 507 + index for index, name in enumerate(names)})
    assert (vocab.num_text, vocab.size, vocab.first_code) == (507, 513, 507)
    assert vocab.forbidden_tokens == (0, 1, 3, *range(500, 507))
    assert vocab.pieces([503]) == ["<unused_503>"]


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no vocab\.json"):
        BytePairModel.load(tmp_path)
    shutil.copytree(golden.path("opt_tiny/tokenizer"), tmp_path / "a")
    (tmp_path / "a/merges.txt").write_text("#version: 0.2\nĠ\n")
    with pytest.raises(UserError, match="cannot be read"):
        BytePairModel.load(tmp_path / "a")
    (tmp_path / "a/vocab.json").write_text('{"a": 0}')
    (tmp_path / "a/merges.txt").write_text("")
    with pytest.raises(UserError, match=r"lacks <pad> and </s>"):
        BytePairModel.load(tmp_path / "a")
