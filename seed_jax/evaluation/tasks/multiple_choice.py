"""Multiple choice by likelihood or by generated letters: SEED-Bench, and MMBench with its rotations."""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed_jax.errors import UserError
from seed_jax.evaluation import data_files
from seed_jax.evaluation.answering import LETTERS, RULES, GeneratedText, RankedChoices
from seed_jax.evaluation.task import (
    DataOptions,
    Frames,
    LoadedSample,
    PaperNumber,
    Prediction,
    Sample,
    Scores,
    by_group,
    mean,
)
from seed_jax.files import MAX_LIST_BYTES, read_bytes
from seed_jax.inference.generation.sampling_params import SamplingParams

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."
_ROTATION = 1_000_000  # MMBench's rows with equal index modulo this are rotations of one question
_FRAMES = 8
_NO_ANSWERS = "The split has no answers: send submission.json to the evaluation server."
_RULE_NOTE = (
    "accuracy compares the sums of token log-probabilities, SEED-Bench's official rule for LLaMA; which rule gave the"
    " published number is not known."
)


class Ranked(RankedChoices):
    """Questions of which the most likely choice is the answer; all rules of comparison are reported."""

    metric = "accuracy"

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        if not all(sample.truth["answer"] for sample in samples):
            return Scores({}, notes=(_NO_ANSWERS,))
        values = {rule: _correct(samples, [prediction["chosen"][rule] for prediction in predictions]) for rule in RULES}
        return Scores(
            {"accuracy": mean(values["sum"]), **{f"accuracy_{rule}": mean(values[rule]) for rule in RULES[1:]}},
            {"accuracy": values["sum"], **{f"accuracy_{rule}": values[rule] for rule in RULES[1:]}},
            by_group(samples, values["sum"]),
            (_RULE_NOTE, *_revision_notes(samples)),
        )

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        return _describe(sample, prediction)


class Lettered(GeneratedText):
    """Questions that are answered with a generated letter; an answer without a letter is wrong."""

    metric = "accuracy"
    sampling_params = SamplingParams(16, mode="text")

    def prompt(self, sample: Sample, style: str) -> str:
        return f"{sample.text}\n{_options(sample)}\n{LETTER_INSTRUCTION}"

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        predictions = super().predict(batch, model, params)
        return [
            {**prediction, "prediction": find_letter(prediction["prediction"], loaded.sample.choices),
             "answer": prediction["prediction"]}
            for loaded, prediction in zip(batch, predictions, strict=True)
        ]  # fmt: skip

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        if not all(sample.truth["answer"] for sample in samples):
            return Scores({}, notes=(_NO_ANSWERS,))
        values = _correct(samples, [prediction["prediction"] for prediction in predictions])
        unparsed = sum(not prediction["prediction"] for prediction in predictions)
        notes = (f"{unparsed} answers name no option and count as wrong.", *_revision_notes(samples))
        return Scores({"accuracy": mean(values)}, {"accuracy": values}, by_group(samples, values), notes)

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        return _describe(sample, prediction) | {"answer": prediction["answer"]}


def find_letter(answer: str, choices: Sequence[str]) -> str:
    """Return the letter of the option that an answer names, or "".

    The only letter among the words counts, with or without a mark beside it; a lone "A" in an answer of more than three
    words is taken for the article. Otherwise the only option whose text is in the answer counts.
    """
    letters = LETTERS[: len(choices)]
    words = answer.split()
    for tokens in (words, [word.strip(".,:;)(\"'") for word in words]):
        found = {word for word in tokens if len(word) == 1 and word in letters}
        if found == {"A"} and len(words) > 3:
            found = set()
        if len(found) == 1:
            return found.pop()
    if len(words) == 1 and (match := re.fullmatch(r"\W*([A-Za-z])\W*", answer.strip())):
        letter = match[1].upper()
        return letter if letter in letters else ""
    named = [letter for letter, text in zip(letters, choices, strict=True) if text and text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else ""


class SeedBenchFiles:
    """The reader of SEED-Bench: all image questions, or the video questions, pooled."""

    video = False

    def read(self, options: DataOptions) -> list[Sample]:
        path = data_files.find(
            options.data, ["SEED-Bench.json", "SEED-Bench*.json"], options.annotations, "--annotations"
        )
        content = data_files.read_json(path)
        if not isinstance(content, dict) or "questions" not in content:
            raise UserError(f"{path} has no list `questions`: give SEED-Bench.json with --annotations.")
        revision = hashlib.sha256(read_bytes(path, MAX_LIST_BYTES)).hexdigest()[:12]
        numbers = content.get("question_type")
        names = {str(number): name for name, number in numbers.items()} if isinstance(numbers, dict) else {}
        samples = [
            self._sample(record, where, names, options, revision)
            for where, record in data_files.records(content["questions"], f"{path}, questions")
            if (record.get("data_type") == "video") == self.video
        ]
        if not samples:
            raise UserError(f"{path} has no {'video' if self.video else 'image'} questions: give another file.")
        return samples

    def _sample(
        self, record: dict[str, Any], where: str, names: dict[str, Any], options: DataOptions, revision: str
    ) -> Sample:
        answer = data_files.text(record, "answer", where)
        if answer not in LETTERS[:4]:
            raise UserError(f"{where}: the answer is {answer!r}, expected A, B, C or D.")
        choices = tuple(str(record.get(f"choice_{letter.lower()}", "")) for letter in LETTERS[:4])
        if not all(choices):
            raise UserError(f"{where}: expected four choices, choice_a to choice_d.")
        name = str(data_files.identifier(record, "data_id", where))
        image: Path | Frames
        if self.video:
            places = [f"{name}", f"videos/{name}", f"v1_video/{name}"]
            found = next(
                (options.image_root / place for place in places if (options.image_root / place).exists()), None
            )
            image = Frames(found or options.image_root / name, options.frames or _FRAMES)
        else:
            image = data_files.existing(options.image_root, [f"SEED-Bench-image/{name}", name, f"images/{name}"])
        question_type = str(record.get("question_type_id", ""))
        return Sample(
            str(data_files.identifier(record, "question_id", where)),
            (image,),
            data_files.text(record, "question", where),
            choices,
            {"answer": answer, "revision": revision},
            str(names.get(question_type, question_type)),
        )

    def submission(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Any:
        return [
            {"question_id": sample.id, "prediction": prediction["prediction"]}
            for sample, prediction in zip(samples, predictions, strict=True)
        ]


class SeedBench(SeedBenchFiles, Ranked):
    """SEED-Bench's image questions by likelihood."""

    name = "seed_bench"
    summary = "SEED-Bench image questions, choices ranked by likelihood"
    paper = (
        PaperNumber("SEED-LLaMA-I 8B", "accuracy", 51.5),
        PaperNumber("SEED-LLaMA-I 14B", "accuracy", 53.7),
    )


class SeedBenchVideo(SeedBenchFiles, Ranked):
    """SEED-Bench's video questions by likelihood, from whole videos or extracted frames."""

    name = "seed_bench_video"
    summary = "SEED-Bench video questions (8 frames of the whole video), choices ranked by likelihood"
    video = True


class SeedBenchLetters(SeedBenchFiles, Lettered):
    """SEED-Bench's image questions by generated letters."""

    name = "seed_bench_letters"
    summary = "SEED-Bench image questions, answered with a generated letter"


class MMBenchFiles:
    """The reader of MMBench's tables, and its circular score."""

    def read(self, options: DataOptions) -> list[Sample]:
        path = data_files.find(options.data, ["mmbench*.tsv", "MMBench*.tsv"], options.annotations, "--annotations")
        rows = data_files.read_table(path, "\t", ["index", "question", "A", "B", "image"])
        images = {row["index"]: row["image"] for row in rows}
        samples = []
        for number, row in enumerate(rows, 1):
            # Some editions store an image once and refer to its row elsewhere.
            shared = {**row, "image": images.get(row["image"], row["image"])}
            samples.append(_mmbench_sample(shared, f"{path}, row {number}"))
        return samples

    def submission(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Any:
        return [
            {"index": sample.id, "prediction": prediction["prediction"]}
            for sample, prediction in zip(samples, predictions, strict=True)
        ]


class MMBench(MMBenchFiles, Ranked):
    """MMBench by likelihood."""

    name = "mmbench"
    summary = "MMBench, choices ranked by likelihood; right only if all rotations are"
    metric = "circular_accuracy"

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        return _circular(super().score(samples, predictions), samples)


class MMBenchLetters(MMBenchFiles, Lettered):
    """MMBench by generated letters."""

    name = "mmbench_letters"
    summary = "MMBench, answered with a generated letter; right only if all rotations are"
    metric = "circular_accuracy"

    def prompt(self, sample: Sample, style: str) -> str:
        return f"{sample.text} There are several options:\n{_options(sample)}\n\n{LETTER_INSTRUCTION}"

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        return _circular(super().score(samples, predictions), samples)


def _mmbench_sample(row: dict[str, str], where: str) -> Sample:
    choices = []
    for letter in "ABCDE":
        text = row.get(letter)
        if text is None or text in ("", "nan"):
            break
        choices.append(text)
    answer = row.get("answer") or ""
    if len(choices) < 2 or (answer and answer not in LETTERS[: len(choices)]):
        raise UserError(
            f"{where}: expected at least two options and the letter of one as the answer, found {answer!r}."
        )
    if not row["index"].isdecimal():
        raise UserError(f"{where}: the index is {row['index']!r}, expected a number.")
    try:
        image = base64.b64decode(row["image"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: the image is not base64 ({error}).") from error
    hint = row.get("hint") or ""
    question = row["question"] if hint in ("", "nan") else f"{hint} {row['question']}"
    return Sample(row["index"], (image,), question, tuple(choices), {"answer": answer}, row.get("category") or "")


def _circular(scores: Scores, samples: Sequence[Sample]) -> Scores:
    """Add the accuracy over questions that are right in all their rotations, and make it the main one."""
    if not scores.metrics:
        return scores
    questions: dict[int, list[float]] = {}
    for sample, value in zip(samples, scores.per_sample["accuracy"], strict=True):
        questions.setdefault(int(sample.id) % _ROTATION, []).append(value)
    circular = [min(values) for values in questions.values()]
    return Scores(
        {"circular_accuracy": mean(circular), **scores.metrics},
        {"circular_accuracy": circular, **scores.per_sample},
        scores.groups,
        scores.notes,
    )


def _revision_notes(samples: Sequence[Sample]) -> list[str]:
    """Say which of the revisions that share the name SEED-Bench.json was used."""
    revisions = {sample.truth["revision"] for sample in samples if "revision" in sample.truth}
    return [f"The questions are from a file with the SHA-256 {revision}..." for revision in sorted(revisions)]


def _correct(samples: Sequence[Sample], letters: Sequence[str]) -> list[float]:
    return [100.0 * (letter == sample.truth["answer"]) for sample, letter in zip(samples, letters, strict=True)]


def _options(sample: Sample) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, sample.choices, strict=False))


def _describe(sample: Sample, prediction: Prediction) -> dict[str, str]:
    return {
        "question": sample.text,
        "options": _options(sample),
        "prediction": prediction["prediction"] or "none",
        "truth": sample.truth["answer"],
    }


TASKS = [SeedBench(), SeedBenchVideo(), SeedBenchLetters(), MMBench(), MMBenchLetters()]
