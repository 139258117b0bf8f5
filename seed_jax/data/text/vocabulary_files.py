"""The tokenizer files of a SEED-LLaMA model: validated on reading, written for the Hugging Face libraries."""

import dataclasses
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from seed_jax.data.text.byte_pair import FAST, MERGES, VOCAB, BytePairModel
from seed_jax.errors import UserError
from seed_jax.files import read_bytes, read_json, write_bytes

TOKENIZER_MODEL = "tokenizer.model"
ADDED_TOKENS = "added_tokens.json"
# The files of a text tokenizer, LLaMA's or OPT's, that belong to a model directory.
TOKENIZER_FILES = (
    TOKENIZER_MODEL, ADDED_TOKENS, "tokenizer_config.json", "special_tokens_map.json", VOCAB, MERGES, FAST,
)  # fmt: skip
_CODE = re.compile(r"<img_([0-9]{5})>")
_CONTROL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # in the order of their ids


@dataclasses.dataclass(frozen=True)
class ImageTokens:
    """Ids of the image delimiters, and first id and number of the image codes."""

    boi: int
    eoi: int
    first_code: int
    num_codes: int


def read_files(directory: Path) -> tuple[bytes | BytePairModel, dict[str, Any]]:
    """Return the text model, SentencePiece's serialized or OPT's, and the content of `added_tokens.json`."""
    is_opt = any((directory / name).is_file() for name in (VOCAB, FAST)) and not (directory / TOKENIZER_MODEL).is_file()
    for name in (ADDED_TOKENS,) if is_opt else (TOKENIZER_MODEL, ADDED_TOKENS):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} has no {name}: expected a directory with the tokenizer of a SEED-LLaMA model."
            )
    added = read_json(directory / ADDED_TOKENS, "download it again")
    return BytePairModel.load(directory) if is_opt else read_bytes(directory / TOKENIZER_MODEL), added


def read_model(model: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
    """Parse a SentencePiece model and check that `<unk>`, `<s>`, `</s>` have the ids 0, 1, 2."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        names = processor.id_to_piece(list(range(len(processor))))[:3]
    except (RuntimeError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{TOKENIZER_MODEL} of {origin} is not a SentencePiece model: download it again.") from error
    if names != list(_CONTROL_TOKENS.values()):
        raise UserError(f"{TOKENIZER_MODEL} of {origin} begins with {names}, expected <unk>, <s>, </s> as in LLaMA.")
    return processor


def read_added_tokens(added: dict[str, Any], num_text: int, origin: str) -> ImageTokens:
    """Validate the content of `added_tokens.json` and return the image tokens.

    Args:
        added: token name -> id: `<img>`, `</img>` and consecutive `<img_00000>`, ...; the ids follow the text pieces.
        num_text: number of text pieces.
        origin: where the file comes from, for error messages.
    """
    file = f"{ADDED_TOKENS} of {origin}"
    for name, index in added.items():
        if name not in ("<img>", "</img>") and not _CODE.fullmatch(name):
            raise UserError(
                f"{file} has the key {name!r}, expected only <img>, </img> and <img_00000>, <img_00001>, ..."
            )
        if type(index) is not int:
            raise UserError(f"{file} gives {name} the id {index!r}, expected an integer.")
    for name in ("<img>", "</img>", "<img_00000>"):
        if name not in added:
            raise UserError(f"{file} lacks {name}: it is not the tokenizer of a SEED-LLaMA model.")
    first = added["<img_00000>"]
    count = len(added) - 2
    for code in range(count):
        index = added.get(f"<img_{code:05d}>")
        if index != first + code:
            problem = "is missing" if index is None else f"has the id {index}"
            raise UserError(
                f"{file}: <img_{code:05d}> {problem}, expected id {first + code} ({count} consecutive codes)."
            )
    taken = {index: name for name, index in added.items()}
    for index in range(num_text, num_text + len(added)):
        if index not in taken:
            raise UserError(f"{file} has no token with id {index}, expected ids {num_text} to {num_text + count + 1}.")
    return ImageTokens(boi=added["<img>"], eoi=added["</img>"], first_code=first, num_codes=count)


def write_files(directory: Path, model: bytes | BytePairModel, added: dict[str, int]) -> None:
    """Write the model and the JSON files, each atomically."""
    if isinstance(model, BytePairModel):
        model.save(directory)
        write_bytes(directory / ADDED_TOKENS, _json(added))
        return
    control = {
        name: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, text in _CONTROL_TOKENS.items()
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,  # newer loaders would otherwise drop the U+2581 that begins a fragment
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
        write_bytes(directory / name, content)


def image_tokens(first: int, num_codes: int) -> dict[str, int]:
    """Return the ids of image tokens that follow `first` text tokens: codes, `<img>`, `</img>`."""
    names = [*(f"<img_{code:05d}>" for code in range(num_codes)), "<img>", "</img>"]
    return {name: first + offset for offset, name in enumerate(names)}


def train_small(texts: Iterable[str], directory: str | Path, vocab_size: int = 600, num_codes: int = 128) -> None:
    """Train a small tokenizer with LLaMA's settings and write its files, for tests and small runs.

    Byte-pair encoding with byte fallback, no normalization; deterministic. The image tokens follow the text pieces as
    in the released model: codes, `<img>`, `</img>`.

    Args:
        texts: the training texts.
        directory: where to write the tokenizer files.
        vocab_size: maximum number of text pieces, without image tokens; fewer if the texts have fewer merges.
        num_codes: size of the image codebook.
    """
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not 0 < num_codes <= 100_000:
        raise UserError(f"num_codes is {num_codes}, expected 1 to 100000: the token names have five digits.")
    if not lines:
        raise UserError("train_small needs at least one non-blank line of text.")
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
            num_threads=1,  # the order of merges with equal counts must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"a vocabulary of {vocab_size} pieces could not be trained on these texts: {error}") from error
    model = target.getvalue()
    first = len(sentencepiece.SentencePieceProcessor(model_proto=model))
    write_files(Path(directory), model, image_tokens(first, num_codes))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
