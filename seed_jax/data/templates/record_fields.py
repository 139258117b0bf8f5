"""Map a stored record to the fields that a template reads.

A record consists of texts and images in reading order. Texts with a role (question, answer, caption0, ...) are either
in `record.meta` under that name or among the items, in the order in which the table below names them:

| task | images among the items | texts, in this order |
|---|---|---|
| pretrain.image_text_pair, seed1.caption, seed1.image | one | its captions, of which one is drawn |
| pretrain.text, pretrain.caption_text_only | none | text |
| pretrain.interleaved | any, in reading order | any, in reading order |
| pretrain.retrieval_augmented | one before each text | the main pair's caption, then the others' |
| pretrain.caption_eval_prompt | one before each text, then one | captions of the examples |
| pretrain.video_caption | frames | answer (the caption) |
| pretrain.edit, sft.edit | source, target | instruction (meta: also instruction_gpt and response) |
| sft.edit_multi_turn | source and three results | instruction0 to instruction2 |
| sft.story | five | caption0 to caption4 |
| sft.qa | one | question, answer; or one text alone: the caption |
| sft.difference, sft.video_qa | two, frames | question, answer |
| sft.conversation, sft.video_conversation | one, frames | user, model, ...; or meta: question, answer, marked up |
| *.visual_question | any | data: user, model, user, ...; or meta: instruction, inputs, outputs |
| *.text_conversation | none | data: user, model, user, ... |
| sft.interleaved | any, in reading order | any; meta: response_at, the index of the first item of the response |

With a `question` in the mixture component, sft.qa and sft.video_qa accept captioned images and videos (`Renderer`).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from seed_jax.data.shards.records import Record
from seed_jax.errors import UserError

Fields = dict[str, Any]


def fields_of(record: Record, task: str, rng: np.random.Generator) -> Fields:
    """Return the fields of a record that a task reads.

    Args:
        record: the record.
        task: full name of the task.
        rng: draws one caption if an image has several.

    Raises:
        UserError: the items of the record do not fit the task.
    """
    if any(isinstance(item, bytes) for item in record.items):
        raise UserError(
            "the record has images that are not tokenized: build the shards with `seed-jax data build --model`."
        )
    if task in ("pretrain.image_text_pair", "seed1.caption", "seed1.image"):
        return _image_text_pair(record, rng)
    return _ADAPTERS[task](record)


def _image_text_pair(record: Record, rng: np.random.Generator) -> Fields:
    codes = _codes(record, 1)
    texts = _texts(record)
    if not texts:
        return {"image_ids": codes[0], "metadata": record.meta}
    return {"image_ids": codes[0], "text": draw_one(texts, rng), "metadata": record.meta}


def captioned(record: Record, question: str, rng: np.random.Generator) -> Fields:
    """Return the fields of a captioned image or video, with one of its captions as the answer to `question`."""
    if not (texts := _texts(record)):
        raise UserError("the record has no caption to answer the `question` of its mixture component.")
    return {"image_ids": _flat(record), "question": question, "answer": draw_one(texts, rng)}


def draw_one(texts: list[str], rng: np.random.Generator) -> str:
    """Draw one of several texts; a single text consumes no random number."""
    return texts[int(rng.integers(len(texts)))] if len(texts) > 1 else texts[0]


def _text(record: Record) -> Fields:
    _codes(record, 0)
    return _named(record, ("text",))


def _document(record: Record) -> Fields:
    return {
        "image_ids": [item if isinstance(item, np.ndarray) else None for item in record.items],
        "texts": [item if isinstance(item, str) else None for item in record.items],
    }


def _pairs(record: Record) -> Fields:
    main, *context = _examples(record)
    return {**main, "context": context}


def _prompt(record: Record) -> Fields:
    *context, last = _examples(record, open_end=True)
    return {**last, "context": context}


def _examples(record: Record, open_end: bool = False) -> list[Fields]:
    """Group items into (image, text) pairs; with `open_end` the last image has no text."""
    images = record.items[::2]
    texts = record.items[1::2]
    alternate = all(isinstance(item, np.ndarray) for item in images) and all(isinstance(item, str) for item in texts)
    if not alternate or len(images) - len(texts) != open_end:
        raise UserError(
            "the items of the record do not alternate between images and their texts, as this task expects."
        )
    return [{"image_ids": image, "text": text} for image, text in zip(images, [*texts, ""], strict=False)]


def _flat_with(record: Record, *, names: tuple[str, ...]) -> Fields:
    return {"image_ids": _flat(record), **_named(record, names)}


def _question(record: Record) -> Fields:
    texts = _texts(record)
    if len(texts) == 1 and not {"question", "answer"} & set(record.meta):
        return {"image_ids": _flat(record), "text": texts[0]}
    return _flat_with(record, names=("question", "answer"))


def _conversation(record: Record) -> Fields:
    if not (texts := _texts(record)):
        return _question(record)
    return {"image_ids": _flat(record), "question": texts[::2], "answer": texts[1::2]}


def _edit(record: Record) -> Fields:
    source, target = _codes(record, 2)
    rewritten = {key: record.meta[key] for key in ("instruction_gpt", "response") if key in record.meta}
    texts = {} if rewritten and not _texts(record) else _named(record, ("instruction",))
    return {"source_image_ids": source, "target_image_ids": target, **texts, **rewritten}


def _visual(record: Record) -> Fields:
    return {"image_ids": _codes(record), **_turns(record)}


def _chat(record: Record) -> Fields:
    _codes(record, 0)
    return _turns(record)


def _turns(record: Record) -> Fields:
    if texts := _texts(record):
        return {"data": texts}
    return {key: record.meta[key] for key in ("data", "instruction", "inputs", "outputs") if key in record.meta}


def _answered(record: Record) -> Fields:
    index = record.meta.get("response_at")
    if type(index) is not int or not 0 <= index <= len(record.items):
        raise UserError(
            f"meta.response_at of the record is {index!r}, expected the index of the first item of the response."
        )
    return {"instruction": record.items[:index], "response": record.items[index:]}


_ADAPTERS: dict[str, Callable[[Record], Fields]] = {
    "pretrain.caption_eval_prompt": _prompt,
    "pretrain.caption_text_only": _text,
    "pretrain.edit": _edit,
    "pretrain.interleaved": _document,
    "pretrain.retrieval_augmented": _pairs,
    "pretrain.text": _text,
    "pretrain.text_conversation": _chat,
    "pretrain.video_caption": functools.partial(_flat_with, names=("answer",)),
    "pretrain.visual_question": _visual,
    "sft.conversation": _conversation,
    "sft.difference": _question,
    "sft.edit": _edit,
    "sft.edit_multi_turn": functools.partial(_flat_with, names=("instruction0", "instruction1", "instruction2")),
    "sft.interleaved": _answered,
    "sft.qa": _question,
    "sft.story": functools.partial(_flat_with, names=tuple(f"caption{number}" for number in range(5))),
    "sft.text_conversation": _chat,
    "sft.video_conversation": _conversation,
    "sft.video_qa": _question,
    "sft.visual_question": _visual,
}


def _texts(record: Record) -> list[str]:
    return [item for item in record.items if isinstance(item, str)]


def _codes(record: Record, count: int | None = None) -> list[np.ndarray]:
    """Return the codes of the images; UserError if there are not `count` images."""
    codes = [item for item in record.items if isinstance(item, np.ndarray)]
    if count is not None and len(codes) != count:
        raise UserError(
            f"the record has {len(codes)} images, expected {count}: check the task of its mixture component."
        )
    return codes


def _flat(record: Record) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.uint16), *_codes(record)])


def _named(record: Record, names: tuple[str, ...]) -> Fields:
    """Return texts by name from meta, and those missing there from the items, in the order of `names`."""
    fields = {name: record.meta[name] for name in names if name in record.meta}
    missing = [name for name in names if name not in fields]
    texts = _texts(record)
    if len(texts) != len(missing):
        raise UserError(
            f"the record has {len(texts)} texts among its items, expected {len(missing)} ({', '.join(missing)})."
        )
    return {**fields, **dict(zip(missing, texts, strict=True))}
