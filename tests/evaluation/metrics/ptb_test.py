"""Tokens equal to those of the Java tokenizer."""

import time

import pytest

from seed_jax.evaluation.metrics import ptb
from tests.support import golden

# What pycocoevalcap removes from the lexer's tokens.
PUNCTUATION = ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]


def alone(texts):
    """Tokenize texts that do not see each other."""
    return ptb.tokenize([line for text in texts for line in (text, "zzz")])[::2]


def differences(texts, tokens, expected):
    return [case for case in zip(texts, tokens, expected, strict=True) if case[1] != case[2]]


@pytest.mark.parametrize("backwards", [False, True])
def test_sentences_as_the_java_tokenizer(backwards):
    sentences = golden.load_json("evaluation/ptb_tokens.json")
    texts = [sentence["text"] for sentence in sentences]
    expected = [sentence["tokens"] for sentence in sentences]
    assert len(texts) == 706
    step = -1 if backwards else 1
    assert differences(texts, ptb.tokenize(texts[::step])[::step], expected) == []


def test_probes_as_the_java_tokenizer():
    sentences = golden.load_json("evaluation/ptb_probes.json")["sentences"]
    texts = [sentence["text"] for sentence in sentences]
    assert len(texts) == 126
    assert differences(texts, alone(texts), [sentence["tokens"] for sentence in sentences]) == []


def test_random_lines_of_one_file_as_the_java_tokenizer():
    file = golden.load_json("evaluation/ptb_random_file.json")
    assert differences(file["lines"], ptb.tokenize(file["lines"]), file["tokens"]) == []


def test_a_caption_depends_on_the_next_one_of_the_file():
    files = golden.load_json("evaluation/ptb_probes.json")["files"]
    assert len(files) == 16
    assert [ptb.tokenize(file["lines"]) for file in files] == [file["tokens"] for file in files]


def test_every_character_joins_splits_or_vanishes_as_in_java():
    table = golden.load_json("evaluation/ptb_probes.json")["bmp_classes_of_c_in_xa_c_bx"]
    texts, expected = [], []
    for class_, ranges in table.items():
        for entry in ranges:
            first, last = entry.split("-") if "-" in entry else (entry, entry)
            for character in {chr(int(first, 16)), chr((int(first, 16) + int(last, 16)) // 2), chr(int(last, 16))}:
                if character in "\n\r\x0b\x0c\u0085\u2028\u2029":  # line ends to the lexer
                    continue
                if class_ == "replaced":
                    lexed = ranges[entry]
                elif class_.startswith("joined"):
                    lexed = f"xa{character}bx".lower()
                elif class_.startswith("kept"):
                    lexed = f"xa {character} bx"
                elif class_.startswith("removed"):
                    lexed = "xabx"
                else:
                    lexed = "xa bx"
                texts.append(f"xa{character}bx")
                expected.append(" ".join(token for token in lexed.split(" ") if token not in PUNCTUATION))
    assert len(texts) > 2000
    assert differences(texts, alone(texts), expected) == []


def test_line_separators_inside_a_caption_are_spaces_and_are_counted():
    captions = ["a dog\nruns", "a\u2028cat", "two\x0cbirds\r", "a horse"]
    assert ptb.tokenize(captions) == ["a dog runs", "a cat", "two birds", "a horse"]
    assert ptb.count_line_separators(captions) == 2


def test_no_captions_and_empty_captions():
    assert ptb.tokenize([]) == []
    assert ptb.tokenize(["", "  ", "...", ""]) == ["", "", "", ""]


def test_long_text_without_spaces_takes_linear_time():
    start = time.perf_counter()
    ptb.tokenize(["a," * 3000, "<a " * 2000, "1:" * 3000, "a.b" * 2000, "x"])
    assert time.perf_counter() - start < 60
