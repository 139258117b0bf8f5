import json
import random

import pytest

from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from tests.support import golden

FOLDER = "unclip_tiny/diffusion_model/tokenizer"


def fixture() -> ClipVocabulary:
    return ClipVocabulary.load(golden.path(FOLDER))


@pytest.mark.parametrize(("text", "name"), [("", "empty"), ("the cat of dog photo", "text")])
def test_ids_equal_the_originals(text, name):
    expected = golden.tensors("unclip_tiny/pieces.safetensors")[f"input_ids_{name}"][0].tolist()
    assert fixture().encode(text) == expected


def test_ids_equal_transformers():
    """On any Unicode: endings, digits, marks, white space, special symbols within the text, and too much of it."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(golden.path(FOLDER))
    draw = random.Random(0)
    alphabet = " abcdefthopTHE'!,.0123?-_é☃ñ中½Ⅷ😀\u00a0\u3000\u0301\u200b\t\n"
    texts = ["It's a DOG, they'll've 123 naïve", "<|endoftext|> hi <|startoftext|>", "photo" * 60, "''s 'tis", "Åﬁǅ"]
    texts += ["".join(draw.choices(alphabet, k=draw.randrange(60))) for _ in range(200)]
    ours = fixture()
    for text in texts:
        assert ours.encode(text) == theirs(text, padding="max_length", max_length=77, truncation=True).input_ids, text


def test_survives_saving(tmp_path):
    fixture().save(tmp_path)
    assert ClipVocabulary.load(tmp_path) == fixture()


def test_reads_the_newer_single_file(tmp_path):
    ours = fixture()
    model = {"vocab": ours.ids, "merges": [list(pair) for pair in ours.merges]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "!", "model_max_length": 77}')
    assert ClipVocabulary.load(tmp_path) == ours


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt"):
        ClipVocabulary.load(tmp_path)
    fixture().save(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(UserError, match=r"<\|startoftext\|>"):
        ClipVocabulary.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match=r"vocab\.json is not valid JSON"):
        ClipVocabulary.load(tmp_path)
