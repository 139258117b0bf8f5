"""The tokenizer files of a SEED-LLaMA model: read strictly, written as Hugging Face's loader expects them."""

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from seed_jax.errors import UserError

TOKENIZER_MODEL, ADDED_TOKENS = "tokenizer.model", "added_tokens.json"
_CODE = re.compile(r"<img_([0-9]{5})>")
_CONTROL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # in the order of their ids


@dataclasses.dataclass(frozen=True)
class ImageTokens:
    """Ids of the image delimiters, and where the image codes begin and how many there are."""

    boi: int
    eoi: int
    first_code: int
    num_codes: int


def read_files(directory: Path) -> tuple[bytes, dict]:
    """Return the serialised model and the content of `added_tokens.json`."""
    for name in (TOKENIZER_MODEL, ADDED_TOKENS):
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no {name}: give a directory with the tokenizer of a SEED-LLaMA model.")
    try:
        added = json.loads((directory / ADDED_TOKENS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{directory / ADDED_TOKENS} is not readable JSON ({error}); copy the file again.") from error
    if not isinstance(added, dict):
        raise UserError(f"{directory / ADDED_TOKENS} holds a {type(added).__name__}, expected token names with ids.")
    return (directory / TOKENIZER_MODEL).read_bytes(), added


def read_model(model: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
    """Parse a SentencePiece model and check that `<unk>`, `<s>`, `</s>` have LLaMA's ids 0, 1, 2."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        names = [processor.id_to_piece(index) for index in range(3)]
    except (RuntimeError, IndexError) as error:
        raise UserError(f"{TOKENIZER_MODEL} of {origin} is not a SentencePiece model; copy the file again.") from error
    if names != list(_CONTROL.values()):
        raise UserError(
            f"{TOKENIZER_MODEL} of {origin} begins with {names}, expected <unk>, <s>, </s> as LLaMA has them."
        )
    return processor


def read_added_tokens(added: dict, num_text: int, origin: str) -> ImageTokens:
    """Find the image tokens in the content of `added_tokens.json`; UserError names the key that is wrong.

    Expected: `<img>`, `</img>` and `<img_00000>` onwards without a gap; their ids follow the `num_text` text pieces.
    """
    place = f"{ADDED_TOKENS} of {origin}"
    for name, index in added.items():
        if name not in ("<img>", "</img>") and not _CODE.fullmatch(name):
            raise UserError(
                f"{place} has the key {name!r}, expected only <img>, </img> and <img_00000>, <img_00001>, ..."
            )
        if type(index) is not int:
            raise UserError(f"{place} gives {name} the id {index!r}, expected a whole number.")
    for name in ("<img>", "</img>", "<img_00000>"):
        if name not in added:
            raise UserError(f"{place} lacks {name}: this is not the tokenizer of a SEED-LLaMA model.")
    first, count = added["<img_00000>"], len(added) - 2
    for code in range(count):
        found = added.get(f"<img_{code:05d}>")
        if found != first + code:
            what = "is missing" if found is None else f"has the id {found}"
            raise UserError(
                f"{place}: <img_{code:05d}> {what}, expected id {first + code} ({count} codes without a gap)."
            )
    taken = {index: name for name, index in added.items()}
    for index in range(num_text, num_text + len(added)):
        if index not in taken:
            raise UserError(f"{place} has no token with id {index}, expected ids {num_text} to {num_text + count + 1}.")
    return ImageTokens(boi=added["<img>"], eoi=added["</img>"], first_code=first, num_codes=count)


def write_files(directory: Path, model: bytes, added: dict) -> None:
    """Write the model and the three JSON files; each appears whole or not at all."""
    control = {
        name: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, text in _CONTROL.items()
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,  # newer loaders would otherwise drop the blank that begins a fragment
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **{name: {"__type": "AddedToken", **token} for name, token in control.items()},
    }
    contents = {
        TOKENIZER_MODEL: model,
        ADDED_TOKENS: _json(added),
        "special_tokens_map.json": _json({"additional_special_tokens": ["<img>", "</img>"], **control}),
        "tokenizer_config.json": _json(config),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        temporary = directory / f".{name}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.replace(directory / name)


def train_small(texts: Iterable[str], directory: str | Path, vocab_size: int = 600, num_codes: int = 128) -> None:
    """Train a small tokenizer with LLaMA's settings on `texts` and write its files: for tests and small runs.

    Byte-pair merges with byte fallback, no normalisation; equal texts give equal files. The image tokens follow the
    text pieces as in the released model: codes, `<img>`, `</img>`.

    Args:
        vocab_size: text pieces wished for, image tokens apart; fewer where the texts do not hold that many merges.
    """
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not 0 < num_codes <= 100_000:
        raise UserError(f"num_codes is {num_codes}, expected 1 to 100000: the token names have five digits.")
    if not lines:
        raise UserError("train_small was given no text; give at least one line.")
    target = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=target,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.99995,
            max_sentence_length=1 << 20,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # merges of equal count must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"a vocabulary of {vocab_size} pieces could not be trained on these texts: {error}") from error
    model = target.getvalue()
    first = len(sentencepiece.SentencePieceProcessor(model_proto=model))
    names = [*(f"<img_{code:05d}>" for code in range(num_codes)), "<img>", "</img>"]
    write_files(Path(directory), model, {name: first + place for place, name in enumerate(names)})


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
