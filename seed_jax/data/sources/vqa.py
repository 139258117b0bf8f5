"""Questions about images: VQAv2, OK-VQA, A-OKVQA, VizWiz, TextVQA, OCR-VQA, and lists of `image, question, answer`.

Give the official files; for VQAv2 and OK-VQA both the questions and the annotations. Images are looked up in
`--images` by the names that each dataset gives them. Of several answers the most frequent is used, at a tie the first;
all of them stay in the metadata. Task: sft.qa, with the answer-length suffix set by the mixture.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import (
    Entry,
    ListSource,
    NumberedEntry,
    as_object,
    first_value,
    index_entries,
    list_entries,
    remaining_metadata,
    text_value,
)
from seed_jax.data.sources.samples import InputFile, Item, RawSample, SkippedSample, SkipSampleError, to_storable
from seed_jax.errors import UserError
from seed_jax.images import EXTENSIONS

SPLITS = {"train": 1, "val": 2, "test": 3}  # numbers of the splits in OCR-VQA
_ARRAY_KEYS = ("questions", "data")  # keys under which the official files keep their entries
_USED_KEYS = ("question", "answer", "answers", "direct_answers")


class VqaSource(ListSource):
    """Read question files; one sample per question.

    Args:
        paths: question files and annotation files.
        images: location of the images.
        split: split of OCR-VQA, which has all three in one file.
    """

    kind = "vqa"
    patterns = ("*.json", "*.jsonl")
    what = "question files"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None, split: str = "train"):
        super().__init__(paths, images=images)
        if split not in SPLITS:
            raise UserError(f"--split {split!r} is not one of {', '.join(SPLITS)}.")
        self.options = {"split": split}
        # Annotations contain no samples, but are input files: a build notices when they change.
        self._annotation_files = tuple(file.path for file in self.files if _is_annotations(file))
        self._annotated_answers = functools.lru_cache(maxsize=1)(_annotated_answers)
        self._first_keys = functools.lru_cache(maxsize=1)(_first_keys)
        self._data_subtype = functools.lru_cache(maxsize=1)(_data_subtype)

    def entries(self, file: InputFile) -> Iterator[NumberedEntry | SkippedSample]:
        if _is_annotations(file):
            return iter(())
        keys = self._first_keys(file.path)
        for key in _ARRAY_KEYS:
            if key in keys:
                return list_entries(file.path, key)
        if keys:
            return enumerate(_ocr_vqa_questions(file.path, SPLITS[self.options["split"]]), 1)
        return list_entries(file.path)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        entry = as_object(entry)
        answers = self._answers(entry)
        image = self._image(_image_name(entry, self._data_subtype(file.path)), entry, file)
        meta = {"question": to_storable(text_value(entry, ("question",), "question"))}
        meta |= remaining_metadata(entry, _USED_KEYS)
        if len(answers) > 1:
            meta["answers"] = to_storable(answers)
        return RawSample(name, (image, Counter(answers).most_common(1)[0][0]), meta)

    def _image(self, name: str, entry: Entry, file: InputFile) -> Item:
        try:
            return self.find_image(name, file, ("", *EXTENSIONS))
        except SkipSampleError:
            if not isinstance(entry, _OcrVqaQuestion):
                raise
            # OCR-VQA's downloader names files by key; their extension need not be that of the URL.
            return self.find_image(entry.key, file, EXTENSIONS)

    def _answers(self, entry: Entry) -> list[str]:
        value = first_value(entry, ("answer", "direct_answers", "answers"))
        if value is None:
            value = self._annotated_answers(self._annotation_files).get(str(entry.get("question_id")))
        answers = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        answers = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
        texts = [answer for answer in answers if isinstance(answer, str)]
        if not texts or len(texts) < len(answers):
            raise SkipSampleError("no answer", f"question_id {entry.get('question_id')!r}"[:80])
        return texts


def _is_annotations(file: InputFile) -> bool:
    return "annotations" in PurePosixPath(file.name).name


def _first_keys(path: Path) -> tuple[str, ...]:
    """Return the first keys of the top-level object, enough to recognize the format; none for an array or lines."""
    if path.suffix != ".json" or json_stream.first_character(path) != "{":
        return ()
    names = []
    for name in json_stream.names(path):
        names.append(name)
        if name in _ARRAY_KEYS or len(names) > len(_ARRAY_KEYS) + 8:
            break
    return tuple(names)


def _annotated_answers(paths: tuple[Path, ...]) -> dict[str, list[Any]]:
    """Return question id -> answers; an answer that the annotators agreed on replaces the individual ones."""
    answers_by_question: dict[str, list[Any]] = {}
    for path in paths:
        for annotation in index_entries(path, "annotations"):
            agreed = annotation.get("multiple_choice_answer")
            answers = annotation.get("answers")
            answers = answers if isinstance(answers, list) else []
            answers = [answer.get("answer") for answer in answers if isinstance(answer, dict)]
            answers_by_question[str(annotation.get("question_id"))] = [agreed] if agreed is not None else answers
    return answers_by_question


def _data_subtype(path: Path) -> Any:
    try:
        return json_stream.value(path, "data_subtype") if _first_keys(path) else None
    except json_stream.DAMAGE:  # counted where the questions are read
        return None


def _image_name(entry: Entry, subtype: Any) -> str:
    """Return the file name of a question's image, with or without its extension."""
    image = first_value(entry, ("image", "image_id"))
    if isinstance(image, str):
        return image
    if not isinstance(image, int):
        raise SkipSampleError("no image name", "expected image or image_id")
    # VQAv2 and OK-VQA use COCO 2014, A-OKVQA uses COCO 2017.
    return f"COCO_{subtype}_{image:012d}.jpg" if isinstance(subtype, str) else f"{image:012d}.jpg"


class _OcrVqaQuestion(dict[str, Any]):
    """A question of OCR-VQA and the key of its book."""

    def __init__(self, key: str, **entry: Any):
        super().__init__(entry)
        self.key = key


def _ocr_vqa_questions(path: Path, split: int) -> Iterator[Entry]:
    """Yield the questions of OCR-VQA: `{key: {"questions": [...], "answers": [...], "imageURL": ...}}`."""
    for key, book in json_stream.members(path):
        book = book if isinstance(book, dict) else {}
        if book.get("split", split) != split:
            continue
        url = book.get("imageURL")
        image = key + (PurePosixPath(url).suffix if isinstance(url, str) else "")
        questions = book.get("questions")
        answers = book.get("answers")
        if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
            questions = [None]
            answers = [None]
        for question, answer in zip(questions, answers, strict=True):
            yield _OcrVqaQuestion(key, image=image, question=question, answer=answer)
