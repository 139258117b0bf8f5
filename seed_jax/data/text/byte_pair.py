"""OPT's byte-level byte-pair encoding: `vocab.json` and `merges.txt`, computed by the `tokenizers` library."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from seed_jax.data.text.byte_symbols import byte_symbols
from seed_jax.errors import UserError
from seed_jax.files import parse_json, read_text, write_bytes, write_json

VOCAB, MERGES, FAST = "vocab.json", "merges.txt", "tokenizer.json"
_PAD, _EOS = "<pad>", "</s>"
_CONTROL = ("<s>", _PAD, _EOS, "<unk>")


class BytePairModel:
    """The text part of OPT's vocabulary; has the methods of a SentencePiece processor that `Vocabulary` uses.

    Args:
        vocab: token -> id, consecutive from 0.
        merges: pairs of tokens, the most frequent first.
        origin: where they come from, for messages.

    Raises:
        UserError: they are not those of an OPT.
    """

    def __init__(self, vocab: dict[str, int], merges: Sequence[tuple[str, str]], origin: str):
        missing = [name for name in (_PAD, _EOS) if name not in vocab]
        if missing or sorted(vocab.values()) != list(range(len(vocab))):
            reason = f"lacks {' and '.join(missing)}" if missing else "does not number its tokens from 0"
            raise UserError(f"{VOCAB} of {origin} {reason}: it is not the vocabulary of an OPT.")
        self.vocab, self.merges = dict(vocab), [(first, second) for first, second in merges]
        try:
            self._tokenizer = tokenizers.Tokenizer(models.BPE(vocab=self.vocab, merges=self.merges))
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{MERGES} of {origin} does not fit {VOCAB} ({error}): download both again.") from error
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._tokenizer.decoder = decoders.ByteLevel()
        self._names = sorted(self.vocab, key=self.vocab.__getitem__)
        self.eos, self.pad = vocab[_EOS], vocab[_PAD]
        self.control = {vocab[name]: name for name in _CONTROL if name in vocab}

    @classmethod
    def load(cls, directory: Path) -> "BytePairModel":
        """Read `vocab.json` and `merges.txt`, or what `tokenizer.json` holds of both.

        Raises:
            UserError: files are missing or damaged.
        """
        try:
            if (directory / VOCAB).is_file() and (directory / MERGES).is_file():
                vocab = parse_json(read_text(directory / VOCAB))
                lines = read_text(directory / MERGES).splitlines()
                merges: list[Any] = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            else:
                model = parse_json(read_text(directory / FAST))["model"]
                vocab = model["vocab"]
                merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
            return cls(
                {str(name): int(index) for name, index in vocab.items()}, [(a, b) for a, b in merges], str(directory)
            )
        except FileNotFoundError:
            raise UserError(
                f"{directory} has no {VOCAB} and {MERGES}: expected the text tokenizer of an OPT."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"The text tokenizer in {directory} cannot be read ({error}): download it again."
            ) from error

    def save(self, directory: Path) -> None:
        """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` as transformers reads them."""
        text = "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in self.merges)
        directory.mkdir(parents=True, exist_ok=True)
        write_bytes(directory / VOCAB, json.dumps(self.vocab, ensure_ascii=False).encode())
        write_bytes(directory / MERGES, text.encode())
        config = {
            "tokenizer_class": "GPT2Tokenizer",
            "add_bos_token": True,
            "add_prefix_space": False,
            "errors": "replace",
            **dict.fromkeys(("bos_token", "eos_token", "unk_token"), _EOS),
            "pad_token": _PAD,
        }
        write_json(directory / "tokenizer_config.json", config)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self):
        return BytePairModel, (self.vocab, self.merges, "a copy")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without control tokens; the names of control tokens are ordinary text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; incomplete characters become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def id_to_piece(self, index: int) -> str:
        """Return the name of a token."""
        return self._names[index]

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of a token; a control token's name."""
        name = self._names[index]
        return name.encode() if index in self.control else bytes(map(_byte_of().__getitem__, name))


@functools.cache
def _byte_of() -> dict[str, int]:
    """Return the byte that each character of a token's name stands for."""
    return {symbol: byte for byte, symbol in enumerate(byte_symbols())}
