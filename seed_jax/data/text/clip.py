"""CLIP's text vocabulary: lower-cased byte pairs, framed and padded to a fixed number of ids.

Only the decoder's optional prompts need it; the empty prompt is nothing but the framing ids.
"""

import dataclasses
import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from seed_jax.errors import UserError

WORD_END = "</w>"
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_MAIN_FILES = ("vocab.json", "merges.txt")


@dataclasses.dataclass(frozen=True)
class ClipVocabulary:
    """Text to ids the way CLIP's tokenizer does it.

    Attributes:
        ids: symbol -> id.
        merges: pairs of symbols, the most frequent first.
        bos, eos, pad: symbols; an unknown symbol becomes eos.
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

        That is vocab.json and merges.txt, or the tokenizer.json of newer files, and the names of the special symbols.
        """
        directory = Path(directory)
        settings = {**_json(directory / "special_tokens_map.json"), **_json(directory / "tokenizer_config.json")}
        if all((directory / name).is_file() for name in _MAIN_FILES):
            ids = _json(directory / "vocab.json")
            lines = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
            merges = tuple(tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version"))
        elif (directory / "tokenizer.json").is_file():
            model = _json(directory / "tokenizer.json").get("model", {})
            ids, pairs = model.get("vocab", {}), model.get("merges", [])
            merges = tuple(tuple(pair.split() if isinstance(pair, str) else pair) for pair in pairs)
        else:
            raise UserError(
                f"{directory} holds no CLIP vocabulary: expected vocab.json and merges.txt, or tokenizer.json."
            )
        special = {
            name: _content(settings[f"{name}_token"]) for name in ("bos", "eos", "pad") if f"{name}_token" in settings
        }
        vocabulary = cls(ids, merges, **special, max_length=int(settings.get("model_max_length", cls.max_length)))
        missing = [symbol for symbol in (vocabulary.bos, vocabulary.eos, vocabulary.pad) if symbol not in ids]
        if missing or not all(len(pair) == 2 for pair in merges):
            raise UserError(
                f"The CLIP vocabulary in {directory} is damaged: it lacks {missing or 'pairs in its merges'}."
            )
        return vocabulary

    def save(self, directory: str | Path) -> list[Path]:
        """Write the four files from which `load` and the Hugging Face libraries read the vocabulary."""
        special = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.eos, "pad_token": self.pad}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length, **special}
        contents = {
            "vocab.json": json.dumps(self.ids, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in self.merges), ""]),
            "tokenizer_config.json": json.dumps(settings, indent=2),
            "special_tokens_map.json": json.dumps(special, indent=2),
        }
        for name, content in contents.items():
            (Path(directory) / name).write_text(content, encoding="utf-8")
        return [Path(directory) / name for name in contents]

    def encode(self, text: str) -> list[int]:
        """Return `max_length` ids: bos, the text (cut if it is too long), eos, padding."""
        body = [self.ids.get(symbol, self.ids[self.eos]) for symbol in self._symbols(text)][: self.max_length - 2]
        framed = [self.ids[self.bos], *body, self.ids[self.eos]]
        return framed + [self.ids[self.pad]] * (self.max_length - len(framed))

    def _symbols(self, text: str) -> Iterator[str]:
        normal = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip().lower()
        # A special symbol written in the text is that symbol; with Stable Diffusion 2 this includes "!", its padding.
        special = (self.bos, self.eos, self.pad)
        for word in re.split(f"({'|'.join(map(re.escape, special))})", normal):
            if word in special:
                yield word
                continue
            for piece in _pieces(word):
                yield from self._merged("".join(_byte_symbols()[byte] for byte in piece.encode("utf-8")))

    def _merged(self, word: str) -> list[str]:
        """Join the pair that ranks first until no pair of the word is known."""
        parts = [*word[:-1], word[-1] + WORD_END]
        while len(parts) > 1:
            ranked = [(self._ranks.get(pair, len(self.merges)), pair) for pair in itertools.pairwise(parts)]
            rank, best = min(ranked)
            if rank == len(self.merges):
                break
            joined, i = [], 0
            while i < len(parts):
                step = 2 if tuple(parts[i : i + 2]) == best else 1
                joined.append("".join(parts[i : i + step]))
                i += step
            parts = joined
        return parts

    @functools.cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again.") from error


def _content(symbol: str | dict) -> str:
    return symbol["content"] if isinstance(symbol, dict) else symbol


def _pieces(text: str) -> Iterator[str]:
    """Split into English endings, runs of letters, single digits and runs of other visible characters."""
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


@functools.cache
def _byte_symbols() -> list[str]:
    """Give each byte a visible character: itself in Latin-1 where that is visible, else the next one from 256 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]
