"""CLIP's text tokenizer: lower-cased byte-pair encoding, padded to a fixed length."""

import dataclasses
import functools
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from seed_jax.data.text.byte_symbols import byte_symbols
from seed_jax.errors import UserError
from seed_jax.files import read_json, read_text, write_text

WORD_END = "</w>"
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_MAX_LENGTH = 2**16
_MAIN_FILES = ("vocab.json", "merges.txt")


@dataclasses.dataclass(frozen=True)
class ClipVocabulary:
    """The byte-pair tokenizer of CLIP.

        vocabulary = ClipVocabulary.load("models/decoder/tokenizer")
        ids = vocabulary.encode("a dog")  # 77 ids

    Attributes:
        ids: symbol -> id.
        merges: pairs of symbols in the order of merging.
        bos, eos, pad: special symbols; unknown symbols become eos.
        max_length: number of ids of every text.
    """

    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    bos: str = "<|startoftext|>"
    eos: str = "<|endoftext|>"
    pad: str = "!"
    max_length: int = 77

    @classmethod
    def load(cls, directory: str | Path) -> "ClipVocabulary":
        """Read the `tokenizer` folder of a diffusers model or a model directory.

        The folder holds vocab.json and merges.txt, or tokenizer.json, and the names of the special symbols.
        """
        directory = Path(directory)
        try:
            return cls._load(directory)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"The CLIP tokenizer in {directory} is damaged ({error}): download it again.") from error

    @classmethod
    def _load(cls, directory: Path) -> "ClipVocabulary":
        settings = {**_json(directory / "special_tokens_map.json"), **_json(directory / "tokenizer_config.json")}
        if all((directory / name).is_file() for name in _MAIN_FILES):
            ids = _json(directory / "vocab.json")
            lines = read_text(directory / "merges.txt").splitlines()
            pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
        elif (directory / "tokenizer.json").is_file():
            model = _json(directory / "tokenizer.json").get("model", {})
            ids = model.get("vocab", {})
            pairs = [pair.split() if isinstance(pair, str) else pair for pair in model.get("merges", [])]
        else:
            raise UserError(
                f"{directory} contains no CLIP tokenizer: expected vocab.json and merges.txt, or tokenizer.json."
            )
        special = {
            name: _content(settings[f"{name}_token"]) for name in ("bos", "eos", "pad") if f"{name}_token" in settings
        }
        merges = tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2)
        max_length = int(settings.get("model_max_length", cls.max_length))
        if not 2 <= max_length <= _MAX_LENGTH:
            raise ValueError(f"model_max_length is {max_length}, expected 2 to {_MAX_LENGTH}")
        if not all(isinstance(symbol, str) and type(index) is int for symbol, index in ids.items()):
            raise ValueError("a symbol has no number")
        vocabulary = cls(ids, merges, **special, max_length=max_length)
        missing = [symbol for symbol in (vocabulary.bos, vocabulary.eos, vocabulary.pad) if symbol not in ids]
        if missing or len(merges) < len(pairs):
            problem = f"the symbols {missing} are missing" if missing else "a merge is not a pair of symbols"
            raise UserError(f"The CLIP tokenizer in {directory} is damaged ({problem}): download it again.")
        return vocabulary

    @classmethod
    def of_bytes(cls, max_length: int = 77) -> "ClipVocabulary":
        """Return a vocabulary without merges, whose tokens are the bytes of a text, for models without weights."""
        symbols = [*byte_symbols(), *(f"{symbol}{WORD_END}" for symbol in byte_symbols())]
        ids = {symbol: index for index, symbol in enumerate([*symbols, cls.bos, cls.eos])}
        return cls(ids, (), max_length=max_length)

    @classmethod
    def train_small(cls, texts: Iterable[str], num_merges: int = 400, max_length: int = 77) -> "ClipVocabulary":
        """Learn merges from texts, the most frequent pair first, for tests and small runs."""
        counts = Counter(piece for text in texts for piece in _pieces(text.lower()))
        parts = {word: _symbols_of(word) for word in counts}
        merges: list[tuple[str, str]] = []
        for _ in range(num_merges):
            pairs: Counter[tuple[str, str]] = Counter()
            for word, symbols in parts.items():
                for pair in itertools.pairwise(symbols):
                    pairs[pair] += counts[word]
            if not pairs:
                break
            merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
            parts = {word: _join(symbols, merges[-1]) for word, symbols in parts.items()}
        base = cls.of_bytes(max_length)
        merged = dict.fromkeys(first + second for first, second in merges)
        symbols = [*(name for name in base.ids if name not in (cls.bos, cls.eos)), *merged, cls.bos, cls.eos]
        return cls({symbol: index for index, symbol in enumerate(symbols)}, tuple(merges), max_length=max_length)

    def save(self, directory: str | Path) -> list[Path]:
        """Write the four tokenizer files that `load` and the Hugging Face libraries read; return their paths."""
        special = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.eos, "pad_token": self.pad}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length, **special}
        contents = {
            "vocab.json": json.dumps(self.ids, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in self.merges), ""]),
            "tokenizer_config.json": json.dumps(settings, indent=2),
            "special_tokens_map.json": json.dumps(special, indent=2),
        }
        for name, content in contents.items():
            write_text(Path(directory) / name, content)
        return [Path(directory) / name for name in contents]

    def encode(self, text: str) -> list[int]:
        """Return `max_length` ids: bos, the text (truncated if necessary), eos, padding."""
        body = [self.ids.get(symbol, self.ids[self.eos]) for symbol in self._symbols(text)][: self.max_length - 2]
        ids = [self.ids[self.bos], *body, self.ids[self.eos]]
        return ids + [self.ids[self.pad]] * (self.max_length - len(ids))

    def _symbols(self, text: str) -> Iterator[str]:
        normal = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip().lower()
        # Special symbols in the text are recognized; for Stable Diffusion 2 these include "!", the padding.
        special = (self.bos, self.eos, self.pad)
        for word in re.split(f"({'|'.join(map(re.escape, special))})", normal):
            if word in special:
                yield word
                continue
            for piece in _pieces(word):
                yield from self._merged(_symbols_of(piece))

    def _merged(self, parts: list[str]) -> list[str]:
        """Apply merges in order of rank until no known pair is left."""
        while len(parts) > 1:
            ranked = [(self._ranks.get(pair, len(self.merges)), pair) for pair in itertools.pairwise(parts)]
            rank, best = min(ranked)
            if rank == len(self.merges):
                break
            parts = _join(parts, best)
        return parts

    @functools.cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}


def _symbols_of(word: str) -> list[str]:
    """Return the bytes of a word as symbols, the last one marked."""
    symbols = [byte_symbols()[byte] for byte in word.encode("utf-8")]
    return [*symbols[:-1], symbols[-1] + WORD_END]


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair of neighbours."""
    joined = []
    i = 0
    while i < len(parts):
        step = 2 if tuple(parts[i : i + 2]) == pair else 1
        joined.append("".join(parts[i : i + step]))
        i += step
    return joined


def _json(path: Path) -> dict:
    return read_json(path, "download it again") if path.is_file() else {}


def _content(symbol: str | dict) -> str:
    return symbol["content"] if isinstance(symbol, dict) else symbol


def _pieces(text: str) -> Iterator[str]:
    """Split into English contractions, runs of letters, single digits and runs of other visible characters."""
    start = 0
    while start < len(text):
        ending = next((ending for ending in _ENDINGS if text.startswith(ending, start)), None)
        kind = _kind(text[start])
        stop = start + 1
        if ending is not None:
            stop = start + len(ending)
        elif kind in "LO":
            while stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
        if kind != " ":
            yield text[start:stop]
        start = stop


def _kind(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "O"
