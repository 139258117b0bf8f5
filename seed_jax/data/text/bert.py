"""BERT's WordPiece tokenizer: `bert-base-uncased` with the `[DEC]` token that BLIP-2 adds.

Text is lower-cased, accents are removed, punctuation and CJK characters become words of their own; a word is split
greedily into the longest known pieces from the left, or becomes `[UNK]`.
"""

import dataclasses
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32

from seed_jax.errors import UserError
from seed_jax.files import read_bytes, write_bytes

FILE = "vocab.txt"
DEC_TOKEN = "[DEC]"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_WORD_LENGTH = 100  # characters; longer words become [UNK]
# Unicode blocks of CJK ideographs.
_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PaddedText:
    """A text as token ids of fixed length; `mask` is False at padding."""

    ids: Int32[np.ndarray, " T"]
    mask: Bool[np.ndarray, " T"]


class BertVocabulary:
    """The WordPiece tokenizer of BERT.

        vocabulary = BertVocabulary.load("vocab.txt")
        padded = vocabulary.pad("a dog", 32)  # padded.ids, padded.mask

    Args:
        pieces: the lines of `vocab.txt`; `[DEC]` is appended if it is missing.
    """

    def __init__(self, pieces: Iterable[str]):
        self.pieces = tuple(pieces)
        if DEC_TOKEN not in self.pieces:
            self.pieces += (DEC_TOKEN,)
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        missing = [piece for piece in _SPECIAL if piece not in self._ids]
        if missing:
            raise UserError(f"The BERT vocabulary lacks {', '.join(missing)}: use the vocab.txt of bert-base-uncased.")
        if len(self._ids) != len(self.pieces):
            twice = next(piece for piece, count in Counter(self.pieces).items() if count > 1)
            raise UserError(f"The BERT vocabulary has {twice!r} twice: use the vocab.txt of bert-base-uncased.")

    @classmethod
    def load(cls, path: str | Path) -> "BertVocabulary":
        """Read `vocab.txt`, given as a file or as its folder."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{path} does not exist: give the vocab.txt of bert-base-uncased or its folder.")
        try:
            return cls(line.rstrip("\r") for line in read_bytes(path).decode("utf-8").removesuffix("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}): use the vocab.txt of bert-base-uncased.") from error

    def save(self, path: Path) -> None:
        """Write `vocab.txt` atomically."""
        write_bytes(path, "".join(piece + "\n" for piece in self.pieces).encode())

    @property
    def size(self) -> int:
        return len(self.pieces)

    def pad(self, text: str, length: int) -> PaddedText:
        """Return [CLS], the text, [SEP] and padding: `length` ids; longer texts are truncated."""
        body = self.encode(text)[: length - 2]
        ids = [self._ids["[CLS]"], *body, self._ids["[SEP]"]]
        padded = np.full(length, self._ids["[PAD]"], np.int32)
        padded[: len(ids)] = ids
        return PaddedText(padded, np.arange(length) < len(ids))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without [CLS] and [SEP]; names of special tokens in it are plain text."""
        return [self._ids[piece] for word in words(text) for piece in self._split(word)]

    def _split(self, word: str) -> list[str]:
        if len(word) > _MAX_WORD_LENGTH:
            return ["[UNK]"]
        pieces = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            known = (stop for stop in range(len(word), start, -1) if prefix + word[start:stop] in self._ids)
            stop = next(known, None)
            if stop is None:
                return ["[UNK]"]
            pieces.append(prefix + word[start:stop])
            start = stop
        return pieces


def train_small(texts: Iterable[str], size: int) -> BertVocabulary:
    """Build a small vocabulary for tests and small runs: all characters, and the most frequent words of the texts."""
    counts = Counter(word for text in texts for word in words(text))
    characters = sorted({character for word in counts for character in word})
    pieces = [*_SPECIAL, *characters, *(f"##{character}" for character in characters)]
    frequent = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    remaining = size - len(pieces) - 1  # [DEC] is appended
    if remaining < 0:
        raise UserError(f"A BERT vocabulary of {size} pieces is too small for {len(characters)} distinct characters.")
    return BertVocabulary([*pieces, *frequent[:remaining]])


def words(text: str) -> Iterator[str]:
    """Yield the lower-cased words, punctuation marks and ideographs of a text, without accents."""
    spaced = "".join(f" {c} " if _is_ideograph(c) else c for c in _cleaned(text))
    for word in unicodedata.normalize("NFC", spaced).split():
        plain = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        yield from "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


def _cleaned(text: str) -> Iterator[str]:
    """Yield the characters of a text, with white space normalized and control characters removed."""
    for character in text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            yield " "
        elif character != "\ufffd" and category[0] != "C":
            yield character


@functools.lru_cache(maxsize=1 << 14)
def _is_punctuation(character: str) -> bool:
    # Every ASCII character that is neither letter nor digit counts, including "$" and "^".
    if character.isascii():
        return not character.isalnum() and not character.isspace()
    return unicodedata.category(character)[0] == "P"


def _is_ideograph(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CJK)


MAX_WORDS = 50
_DROPPED = re.compile(r"[.!\"()*#:;~]")


def clean(caption: str, max_words: int = MAX_WORDS) -> str:
    """Normalize a caption as BLIP-2: lower-case, replace most punctuation by spaces, keep the first words."""
    return " ".join(_DROPPED.sub(" ", caption.lower()).split()[:max_words])
