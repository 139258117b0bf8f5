"""Questions about pictures: VQAv2, OK-VQA, A-OKVQA, VizWiz, TextVQA, OCR-VQA, and lists of `image, question, answer`.

Give the official files; for VQAv2 and OK-VQA both the questions and the annotations. The pictures are looked up in
`--images` by the names that each data set gives them. Of several answers the most frequent is taken, at a tie the
first; all of them stay in the metadata. Task: sft.qa, with the answer-length suffix given by the mixture.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import (
    Entry,
    Listed,
    Numbered,
    entry_of,
    first,
    index_entries,
    list_entries,
    rest,
    text,
)
from seed_jax.data.sources.pictures_at import EXTENSIONS
from seed_jax.data.sources.units import Bad, InputFile, Raw, UnusableError, plain
from seed_jax.errors import UserError

SPLITS = {"train": 1, "val": 2, "test": 3}  # as OCR-VQA numbers them
_ARRAYS = ("questions", "data")  # keys under which the official files keep their entries
_USED = ("question", "answer", "answers", "direct_answers")


class VqaSource(Listed):
    """Read question files; a work unit is a question.

    Args:
        split: of OCR-VQA, which has all three in one file.
    """

    kind = "vqa"
    patterns = ("*.json", "*.jsonl")
    what = "question files"

    def __init__(self, paths: Sequence[str | Path], *, images: str | Path | None = None, split: str = "train"):
        super().__init__(paths, images=images)
        if split not in SPLITS:
            raise UserError(f"--split {split!r} is not one of {', '.join(SPLITS)}.")
        self.options = {"split": split}
        # Annotations are looked up, not read as questions, but a change of theirs is a change of the input.
        self._annotations = tuple(file.path for file in self.files if _is_annotations(file))
        self._annotated = functools.lru_cache(maxsize=1)(_annotated)
        self._keys = functools.lru_cache(maxsize=1)(_keys)
        self._subtype = functools.lru_cache(maxsize=1)(_subtype)

    def entries(self, file: InputFile) -> Iterator[Numbered | Bad]:
        if _is_annotations(file):
            return iter(())
        keys = self._keys(file.path)
        for key in _ARRAYS:
            if key in keys:
                return list_entries(file.path, key)
        if keys:
            return enumerate(_ocr_questions(file.path, SPLITS[self.options["split"]]), 1)
        return list_entries(file.path)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        entry = entry_of(entry)
        answers = self._answers(entry)
        picture = self.picture(_image_name(entry, self._subtype(file.path)), file, ("", *EXTENSIONS))
        question = text(entry, ("question",), "question")
        meta = {"question": plain(question), **rest(entry, _USED)} | (
            {"answers": plain(answers)} if answers[1:] else {}
        )
        return Raw(name, (picture, Counter(answers).most_common(1)[0][0]), meta)

    def _answers(self, entry: Entry) -> list[str]:
        found = first(entry, ("answer", "direct_answers", "answers"))
        if found is None:
            found = self._annotated(self._annotations).get(str(entry.get("question_id")))
        answers = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        answers = [each.get("answer") if isinstance(each, dict) else each for each in answers]
        if not answers or not all(isinstance(each, str) for each in answers):
            raise UnusableError("no answer", f"question_id {entry.get('question_id')!r}"[:80])
        return answers


def _is_annotations(file: InputFile) -> bool:
    return "annotations" in PurePosixPath(file.name).name


def _keys(path: Path) -> tuple[str, ...]:
    """Return the names in the object that a file is, up to one that tells what it is; none for an array or lines."""
    if path.suffix != ".json" or json_stream.first_character(path) != "{":
        return ()
    names = []
    for name in json_stream.names(path):
        names.append(name)
        if name in _ARRAYS or len(names) > len(_ARRAYS) + 8:
            break
    return tuple(names)


def _annotated(paths: tuple[Path, ...]) -> dict[str, list[Any]]:
    """Return the answers by question; a common answer that the annotators agreed on stands alone."""
    found: dict[str, list[Any]] = {}
    for path in paths:
        for each in index_entries(path, "annotations"):
            common, answers = each.get("multiple_choice_answer"), each.get("answers")
            answers = answers if isinstance(answers, list) else []
            answers = [one.get("answer") for one in answers if isinstance(one, dict)]
            found[str(each.get("question_id"))] = [common] if common is not None else answers
    return found


def _subtype(path: Path) -> Any:
    try:
        return json_stream.value(path, "data_subtype") if _keys(path) else None
    except json_stream.DAMAGE:  # which is counted where the questions are read
        return None


def _image_name(entry: Entry, subtype: Any) -> str:
    """Return the file name of a question's picture, with or without its extension."""
    image = first(entry, ("image", "image_id"))
    if isinstance(image, str):
        return image
    if not isinstance(image, int):
        raise UnusableError("no picture named", "expected image or image_id")
    # VQAv2 and OK-VQA are about COCO 2014, A-OKVQA about COCO 2017.
    return f"COCO_{subtype}_{image:012d}.jpg" if isinstance(subtype, str) else f"{image:012d}.jpg"


def _ocr_questions(path: Path, split: int) -> Iterator[Entry]:
    """Yield the questions of OCR-VQA one by one: `{key: {"questions": [...], "answers": [...], "imageURL": ...}}`."""
    for key, book in json_stream.members(path):
        book = book if isinstance(book, dict) else {}
        if book.get("split", split) != split:
            continue
        address = book.get("imageURL")
        image = key + (PurePosixPath(address).suffix if isinstance(address, str) else "")
        questions, answers = book.get("questions"), book.get("answers")
        if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
            questions, answers = [None], [None]
        for question, answer in zip(questions, answers, strict=True):
            yield {"image": image, "question": question, "answer": answer}
