"""The vocabulary: LLaMA's SentencePiece pieces or OPT's byte pairs, one token per image code, and two delimiters.

Text is encoded by the rules of the slow LLaMA tokenizer of transformers 4.30 ("legacy"), spec C.2; newer tokenizers
give different ids. Text is split at special and image tokens; each fragment is encoded separately and begins with its
own U+2581; white space beside an image token is removed, beside `<s>`, `</s>` and `<unk>` it is kept.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from seed_jax.data.text.byte_pair import BytePairModel
from seed_jax.data.text.vocabulary_files import (
    image_tokens,
    read_added_tokens,
    read_files,
    read_model,
    train_small,
    write_files,
)
from seed_jax.errors import UserError

__all__ = ["CODES_PER_IMAGE", "Vocabulary", "image_tokens", "train_small"]

CODES_PER_IMAGE = 32  # number of Q-Former queries: fixed by the image tokenizer, not by the text tokenizer's files

SPACE_SYMBOL = "\u2581"  # SentencePiece's symbol for a space
_TOKEN = re.compile(r"</?s>|<unk>|</?img>|<img_[0-9]{5}>")


class Vocabulary:
    """Encodes text and image codes as token ids and decodes them; picklable, thread-safe.

        vocabulary = Vocabulary.load("models/seed_llama")
        ids = vocabulary.encode_parts(["USER: ", codes, "What is it?"])

    Attributes:
        size: number of tokens; the first `num_text` are text pieces.
        bos, eos, unk, pad: 1, 2, 0 and 0 (the original pads with `<unk>`); OPT's are 2, 2, 2 and 1.
        forbidden_tokens: ids that are never generated.
        boi, eoi: ids of `<img>` and `</img>`.
        first_code, num_codes: image code c is token `first_code + c`.
        blank: what separates a word from the text before it that is encoded apart; SentencePiece adds its own.
    """

    unk, bos, eos, pad = 0, 1, 2, 0
    codes_per_image = CODES_PER_IMAGE
    blank = ""

    def __init__(self, model: bytes | BytePairModel, added: dict, origin: str = "the tokenizer"):
        """Build from a text model and added tokens `{"<img_00000>": id, ...}`; see `load`.

        Args:
            model: a serialized SentencePiece model, or OPT's.
            added: token name -> id.
            origin: where they come from, for messages.
        """
        self._text_model = model
        self._added = dict(added)
        self._byte_pairs = model if isinstance(model, BytePairModel) else None
        if isinstance(model, BytePairModel):
            self._model: Any = model
            self.unk = self.bos = self.eos = model.eos
            self.pad = model.pad
            self.blank = " "
            # OPT's embedding table has more rows than its tokenizer has tokens: the image tokens follow the rows.
            self.num_text = max(len(model), min((i for i in added.values() if isinstance(i, int)), default=0))
            control = model.control
        else:
            self._model = read_model(model, origin)
            self.num_text = len(self._model)
            control = {index: self._model.id_to_piece(index) for index in (self.unk, self.bos, self.eos)}
        tokens = read_added_tokens(added, self.num_text, origin)
        self.boi = tokens.boi
        self.eoi = tokens.eoi
        self.first_code = tokens.first_code
        self.num_codes = tokens.num_codes
        self.size = self.num_text + len(added)
        self._names = {index: name for name, index in added.items()}
        self._specials = control
        # OPT's slow tokenizer takes the names of control tokens in a text as ordinary characters.
        self._splits = {**added, **({} if self._byte_pairs else {name: index for index, name in control.items()})}
        unused = range(len(self._model), self.num_text)
        self.forbidden_tokens = tuple(sorted({*control, self.pad, self.bos, self.unk, *unused} - {self.eos}))

    @classmethod
    def load(cls, directory: str | Path) -> "Vocabulary":
        """Read `tokenizer.model` (or OPT's files) and `added_tokens.json`; UserError if one is missing or invalid."""
        model, added = read_files(Path(directory))
        return cls(model, added, origin=str(directory))

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer files that `load` and the Hugging Face libraries read."""
        write_files(Path(directory), self._text_model, self._added)

    def __reduce__(self):
        return Vocabulary, (self._text_model, self._added)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model and the added tokens: equal for equal ids, independent of file formatting."""
        if isinstance(self._text_model, BytePairModel):
            content = json.dumps([sorted(self._text_model.vocab.items()), self._text_model.merges]).encode()
        else:
            content = self._text_model
        digest = hashlib.sha256(content)
        digest.update(json.dumps(sorted(self._added.items())).encode())
        return digest.hexdigest()

    def encode(self, text: str, bos: bool = False, *, plain: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            text: the text.
            bos: whether to prepend BOS.
            plain: treat `<s>`, `</s>`, `<img>`, ... in `text` as ordinary characters; for untrusted text.
        """
        return [self.bos, *self._ids(text, plain)] if bos else self._ids(text, plain)

    def encode_parts(
        self,
        parts: Iterable[str | Sequence[SupportsIndex] | np.ndarray],
        *,
        plain: bool = False,
        strict_images: bool = True,
        as_vectors: bool = False,
    ) -> list[int]:
        """Encode interleaved texts and images, as the one string that they form together.

        Args:
            parts: texts, and images as their codes (integers [32]).
            plain: as in `encode`; images are still encoded as images.
            strict_images: reject images that do not have `codes_per_image` codes.
            as_vectors: encode images with `vector_ids` instead of `image_ids`.
        """
        encode_image = self.vector_ids if as_vectors else self.image_ids
        ids: list[int] = []
        text = ""
        after_image = False
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            ids += self._ids((text.lstrip() if after_image else text).rstrip(), plain)
            ids += encode_image(part, strict=strict_images)
            text = ""
            after_image = True
        return ids + self._ids(text.lstrip() if after_image else text, plain)

    def image_ids(self, codes: Sequence[SupportsIndex] | np.ndarray, *, strict: bool = True) -> list[int]:
        """Return BOI, the tokens of `codes` (integers [32]) and EOI; UserError for invalid codes."""
        codes = np.asarray(codes)
        if codes.ndim != 1 or (strict and len(codes) != self.codes_per_image):
            raise UserError(
                f"an image has codes of shape {list(codes.shape)}, expected [{self.codes_per_image}]: tokenize it "
                "again, or pass strict_images=False for a flat list of another length."
            )
        if len(codes) and (codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= self.num_codes):
            raise UserError(
                f"an image has codes from {codes.min()} to {codes.max()}, expected integers from 0 to "
                f"{self.num_codes - 1}: codes and vocabulary belong to different tokenizers."
            )
        return [self.boi, *(codes.astype(np.int64) + self.first_code).tolist(), self.eoi]

    def vector_ids(self, codes: Sequence[SupportsIndex] | np.ndarray, *, strict: bool = True) -> list[int]:
        """Return the input ids that stand for the vectors of `codes` in SEED-OPT: `size` + code, without delimiters."""
        return [self.size + token - self.first_code for token in self.image_ids(codes, strict=strict)[1:-1]]

    def code_of(self, token: SupportsIndex) -> int | None:
        """Return the image code of a token, or None if it is not an image code."""
        code = int(token) - self.first_code
        return code if 0 <= code < self.num_codes else None

    def decode(self, ids: Iterable[SupportsIndex], skip_special: bool = False) -> str:
        """Return the text of `ids`; image tokens appear by name, separated by blanks (spec C.2.6).

        Args:
            ids: token ids.
            skip_special: omit `<s>`, `</s>`, `<unk>`, `<img>` and `</img>`, but not the image codes.
        """
        texts: list[str] = []
        run: list[int] = []
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
        """Return the name of every token, such as `▁dog`, `<0x0A>`, `<img_00007>`, for inspection.

        An input id of a code vector (`vector_ids`) is named `<vec_00007>`.
        """
        return [
            f"<vec_{token - self.size:05d}>"
            if self.size <= token < self.size + self.num_codes
            else self._names.get(token) or self._piece(token)
            for token in map(int, ids)
        ]

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds to a text: none for control, image and unused tokens."""
        if token in self._specials or token >= len(self._model):
            return b""
        if self._byte_pairs is not None:
            return self._byte_pairs.token_bytes(token)
        piece = self._piece(token)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_SYMBOL, " ").encode()

    def _ids(self, text: str, plain: bool) -> list[int]:
        if plain or "<" not in text:
            return self._text_ids(text)
        ids: list[int] = []
        start = 0
        after_image = False
        for match in _TOKEN.finditer(text):
            token = self._splits.get(match[0])
            if token is None:  # a code beyond this vocabulary is ordinary text
                continue
            fragment = text[start : match.start()]
            fragment = fragment.lstrip() if after_image else fragment
            ids += self._text_ids(fragment.rstrip() if token >= self.num_text else fragment)
            ids.append(token)
            start = match.end()
            after_image = token >= self.num_text
        return ids + self._text_ids(text[start:].lstrip() if after_image else text[start:])

    def _text_ids(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            return self._model.encode(text)
        except (RuntimeError, UnicodeError):  # lone surrogates from invalid JSON: join or replace them
            return self._model.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _text_of(self, ids: list[int]) -> str:
        text = ""
        run: list[int] = []
        for index, token in enumerate(ids):
            if token not in self._specials:
                self._piece(token)
                run.append(token)
                continue
            # The original writes a blank before the text that precedes a special token.
            blank = " " if index and ids[index - 1] not in self._specials else ""
            text += blank + self._model.decode(run) + self._specials[token]
            run = []
        return text + self._model.decode(run)

    def _piece(self, token: int) -> str:
        if not 0 <= token < self.num_text:
            raise UserError(
                f"token {token} is outside the vocabulary of {self.size} tokens: the ids belong to another model."
            )
        return self._model.id_to_piece(token) if token < len(self._model) else f"<unused_{token}>"
