"""BERT's vocabulary: text to WordPiece ids, as `bert-base-uncased` with the `[DEC]` token that BLIP-2 adds.

Words are lower-cased, accents dropped, punctuation and CJK characters stand alone; a word becomes the longest known
pieces from its left end on, or `[UNK]`.
"""

import dataclasses
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from seed_jax.errors import UserError
from seed_jax.files import write_bytes

FILE = "vocab.txt"
DEC = "[DEC]"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_WORD = 100  # characters; a longer word is unknown
# Blocks of CJK ideographs, whose characters are words of their own.
_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Framed:
    """A text as ids of fixed length, and which of them are no padding."""

    ids: np.ndarray  # int32 [length]
    mask: np.ndarray  # bool [length]


class BertVocabulary:
    """Text to ids.

    Args:
        pieces: the lines of `vocab.txt`; `[DEC]` is added behind them where it is not among them.
    """

    def __init__(self, pieces: Iterable[str]):
        self.pieces = tuple(pieces)
        if DEC not in self.pieces:
            self.pieces += (DEC,)
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        missing = [piece for piece in _SPECIAL if piece not in self._ids]
        if missing:
            raise UserError(f"The BERT vocabulary lacks {', '.join(missing)}: use the vocab.txt of bert-base-uncased.")
        if len(self._ids) != len(self.pieces):
            twice = next(piece for piece, count in Counter(self.pieces).items() if count > 1)
            raise UserError(f"The BERT vocabulary has {twice!r} twice: use the vocab.txt of bert-base-uncased.")

    @classmethod
    def load(cls, path: str | Path) -> "BertVocabulary":
        """Read `vocab.txt`, given itself or the folder it lies in."""
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{path} does not exist: give the vocab.txt of bert-base-uncased or its folder.")
        try:
            return cls(line.rstrip("\r\n") for line in path.open(encoding="utf-8", newline="\n"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}): use the vocab.txt of bert-base-uncased.") from error

    def save(self, path: Path) -> None:
        write_bytes(path, "".join(piece + "\n" for piece in self.pieces).encode())

    @property
    def size(self) -> int:
        return len(self.pieces)

    def frame(self, text: str, length: int) -> Framed:
        """Return [CLS], the text, [SEP] and padding: `length` ids; a longer text is cut at its end."""
        body = self.encode(text)[: length - 2]
        ids = [self._ids["[CLS]"], *body, self._ids["[SEP]"]]
        padded = np.full(length, self._ids["[PAD]"], np.int32)
        padded[: len(ids)] = ids
        return Framed(padded, np.arange(length) < len(ids))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without [CLS] and [SEP]; a special token's name in it is plain text."""
        return [self._ids[piece] for word in words(text) for piece in self._split(word)]

    def _split(self, word: str) -> list[str]:
        if len(word) > _LONGEST_WORD:
            return ["[UNK]"]
        pieces, start = [], 0
        while start < len(word):
            head = "##" if start else ""
            found = (stop for stop in range(len(word), start, -1) if head + word[start:stop] in self._ids)
            stop = next(found, None)
            if stop is None:
                return ["[UNK]"]
            pieces.append(head + word[start:stop])
            start = stop
        return pieces


def train_small(texts: Iterable[str], size: int) -> BertVocabulary:
    """Make a small vocabulary: all characters, alone and inside words, and the most frequent words."""
    counts = Counter(word for text in texts for word in words(text))
    characters = sorted({character for word in counts for character in word})
    pieces = [*_SPECIAL, *characters, *(f"##{character}" for character in characters)]
    frequent = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    room = size - len(pieces) - 1  # [DEC] comes last
    if room < 0:
        raise UserError(f"A BERT vocabulary of {size} pieces has no room for the {len(characters)} characters.")
    return BertVocabulary([*pieces, *frequent[:room]])


def words(text: str) -> Iterator[str]:
    """Yield the lower-cased words, punctuation marks and ideographs of a text, without accents."""
    spaced = "".join(f" {c} " if _is_ideograph(c) else c for c in _cleaned(text))
    for word in unicodedata.normalize("NFC", spaced).split():
        plain = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        yield from "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


def _cleaned(text: str) -> Iterator[str]:
    """Yield the characters of a text, every white space as a space, without those that are not visible."""
    for character in text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            yield " "
        elif character != "\ufffd" and category[0] != "C":
            yield character


@functools.lru_cache(maxsize=1 << 14)
def _is_punctuation(character: str) -> bool:
    # Every ASCII character that is neither letter nor digit counts, "$" and "^" too.
    if character.isascii():
        return not character.isalnum() and not character.isspace()
    return unicodedata.category(character)[0] == "P"


def _is_ideograph(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CJK)


MAX_WORDS = 50
_DROPPED = re.compile(r"[.!\"()*#:;~]")


def clean(caption: str, max_words: int = MAX_WORDS) -> str:
    """Lower the case, turn most punctuation into spaces, collapse spaces, and keep the first words."""
    words = _DROPPED.sub(" ", caption.lower()).split()
    return " ".join(words[:max_words])
