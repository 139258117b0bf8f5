"""The vocabulary: LLaMA's SentencePiece pieces, then one token per image code and the two image delimiters.

Text becomes ids by the rules of the slow LLaMA tokenizer of transformers 4.30 ("legacy"), spec C.2; newer tokenizers
give other ids. Text is cut at special and image tokens; each fragment is encoded on its own and so starts with its own
U+2581; white space beside an image token vanishes, beside `<s>`, `</s>` and `<unk>` it stays.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from seed_jax.data.text.vocabulary_files import read_added_tokens, read_files, read_model, train_small, write_files
from seed_jax.errors import UserError

__all__ = ["CODES_PER_IMAGE", "Vocabulary", "train_small"]

CODES_PER_IMAGE = 32  # the Q-Former's queries: fixed by the image tokenizer, not by the text tokenizer's files

_TOKEN = re.compile(r"</?s>|<unk>|</?img>|<img_[0-9]{5}>")


class Vocabulary:
    """Turn text and image codes into token ids and back; can be pickled, cheap to share between threads.

    Attributes:
        size: number of tokens; `num_text` of them are text pieces, which come first.
        bos, eos, unk, pad: 1, 2, 0 and 0 (the original pads with `<unk>`).
        boi, eoi: ids of `<img>` and `</img>`.
        first_code, num_codes: image code c is token `first_code + c`.
    """

    unk, bos, eos, pad = 0, 1, 2, 0
    codes_per_image = CODES_PER_IMAGE

    def __init__(self, model: bytes, added: dict, origin: str = "the tokenizer"):
        """Build from a serialised SentencePiece model and `{"<img_00000>": id, ...}`; `load` is the usual way in."""
        self._model = read_model(model, origin)
        self._model_bytes, self._added = model, dict(added)
        self.num_text = len(self._model)
        tokens = read_added_tokens(added, self.num_text, origin)
        self.boi, self.eoi = tokens.boi, tokens.eoi
        self.first_code, self.num_codes = tokens.first_code, tokens.num_codes
        self.size = self.num_text + len(added)
        self._names = {index: name for name, index in added.items()}
        self._specials = {index: self._model.id_to_piece(index) for index in (self.unk, self.bos, self.eos)}
        self._splits = {**added, **{name: index for index, name in self._specials.items()}}

    @classmethod
    def load(cls, directory: str | Path) -> "Vocabulary":
        """Read `tokenizer.model` and `added_tokens.json`; UserError where one is missing or not as SEED writes it."""
        return cls(*read_files(Path(directory)), origin=str(directory))

    def save(self, directory: str | Path) -> None:
        """Write the four tokenizer files that `load` and Hugging Face's loader read."""
        write_files(Path(directory), self._model_bytes, self._added)

    def __reduce__(self):
        return Vocabulary, (self._model_bytes, self._added)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the model and the added tokens: equal for equal ids, whatever the files look like."""
        digest = hashlib.sha256(self._model_bytes)
        digest.update(json.dumps(sorted(self._added.items())).encode())
        return digest.hexdigest()

    def encode(self, text: str, bos: bool = False, *, plain: bool = False) -> list[int]:
        """Return the ids of `text`, led by BOS on request.

        Args:
            plain: take `<s>`, `</s>`, `<img>`, ... inside `text` as ordinary characters. For text that a user wrote.
        """
        return [self.bos, *self._ids(text, plain)] if bos else self._ids(text, plain)

    def encode_parts(
        self,
        parts: Iterable[str | Sequence[SupportsIndex] | np.ndarray],
        *,
        plain: bool = False,
        strict_images: bool = True,
    ) -> list[int]:
        """Encode texts and images (their codes) in sequence: the ids of the one string they make together.

        Args:
            plain: as in `encode`; the images stay images.
            strict_images: refuse images that do not have `codes_per_image` codes.
        """
        ids, text, after_image = [], "", False
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            ids += self._ids((text.lstrip() if after_image else text).rstrip(), plain)
            ids += self.image_ids(part, strict=strict_images)
            text, after_image = "", True
        return ids + self._ids(text.lstrip() if after_image else text, plain)

    def image_ids(self, codes: Sequence[SupportsIndex] | np.ndarray, *, strict: bool = True) -> list[int]:
        """Return BOI, the tokens of `codes` and EOI; UserError for a wrong number of codes or a code out of range."""
        codes = np.asarray(codes)
        if codes.ndim != 1 or (strict and len(codes) != self.codes_per_image):
            raise UserError(
                f"an image has codes of shape {list(codes.shape)}, expected [{self.codes_per_image}]: tokenise it "
                "again, or pass strict_images=False for one flat list of another length."
            )
        if len(codes) and (codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= self.num_codes):
            raise UserError(
                f"an image has codes from {codes.min()} to {codes.max()}, expected whole numbers from 0 to "
                f"{self.num_codes - 1}: codes and vocabulary come from different tokenizers."
            )
        return [self.boi, *(codes.astype(np.int64) + self.first_code).tolist(), self.eoi]

    def code_of(self, token: SupportsIndex) -> int | None:
        """Return the image code that `token` stands for, or None where it is no image code."""
        code = int(token) - self.first_code
        return code if 0 <= code < self.num_codes else None

    def decode(self, ids: Iterable[SupportsIndex], skip_special: bool = False) -> str:
        """Return the text of `ids`; image tokens appear by name with blanks between them (spec C.2.6).

        Args:
            skip_special: leave out `<s>`, `</s>`, `<unk>`, `<img>` and `</img>`, not the image codes.
        """
        texts, run = [], []
        skipped = {*self._specials, self.boi, self.eoi} if skip_special else ()
        for token in map(int, ids):
            if token in skipped:
                continue
            if token in self._names:
                texts += [self._text_of(run)] if run else []
                texts.append(self._names[token])
                run = []
            else:
                run.append(token)
        return " ".join(texts + ([self._text_of(run)] if run else []))

    def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Return the name of every token, as `▁dog`, `<0x0A>`, `<img_00007>`: for looking at data."""
        return [self._names.get(token) or self._piece(token) for token in map(int, ids)]

    def _ids(self, text: str, plain: bool) -> list[int]:
        if plain or "<" not in text:
            return self._text_ids(text)
        ids, start, after_image = [], 0, False
        for match in _TOKEN.finditer(text):
            token = self._splits.get(match[0])
            if token is None:  # a code number that this vocabulary does not have is ordinary text
                continue
            fragment = text[start : match.start()]
            fragment = fragment.lstrip() if after_image else fragment
            ids += self._text_ids(fragment.rstrip() if token >= self.num_text else fragment)
            ids.append(token)
            start, after_image = match.end(), token >= self.num_text
        return ids + self._text_ids(text[start:].lstrip() if after_image else text[start:])

    def _text_ids(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            return self._model.encode(text)
        except (RuntimeError, UnicodeError):  # halves of surrogate pairs, from broken JSON: join or replace them
            return self._model.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _text_of(self, ids: list[int]) -> str:
        text, run = "", []
        for place, token in enumerate(ids):
            if token not in self._specials:
                self._piece(token)
                run.append(token)
                continue
            # The original writes a blank for every special token that follows text, before that text.
            blank = " " if place and ids[place - 1] not in self._specials else ""
            text += blank + self._model.decode(run) + self._specials[token]
            run = []
        return text + self._model.decode(run)

    def _piece(self, token: int) -> str:
        if not 0 <= token < self.num_text:
            raise UserError(
                f"token {token} is outside the vocabulary of {self.size} tokens: the ids come from another model."
            )
        return self._model.id_to_piece(token)
