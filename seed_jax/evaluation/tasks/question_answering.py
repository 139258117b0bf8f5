"""Questions about images with short answers: VQAv2, OK-VQA, VizWiz and TextVQA (VQA accuracy), GQA (exact match)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.evaluation import data_files
from seed_jax.evaluation.answering import UNTUNED_STYLES, GeneratedText
from seed_jax.evaluation.metrics.vqa_accuracy import gqa_match, short_answer, vqa_accuracy
from seed_jax.evaluation.task import DataOptions, PaperNumber, Prediction, Sample, Scores, by_group, mean
from seed_jax.inference.generation.sampling_params import SamplingParams

# The official instruction data append this to questions that want a short answer.
SHORT = " Please provide an accurate answer consisting of only one word or phrase."
_CLEANED = (
    "Predictions were lower-cased and their final period removed before scoring: the instruction data end answers with"
    " a period."
)


class ShortAnswers(GeneratedText):
    """Questions with short answers, by beam search without sampling.

    Subclasses read one form of official files.
    """

    metric = "accuracy"
    sampling_params = SamplingParams(20, mode="text", beams=5, length_penalty_on="sequence")

    def __init__(
        self,
        name: str,
        summary: str,
        files: tuple[str, ...],
        paper: tuple[PaperNumber, ...] = (),
        instruction_tuned_on: bool = False,
    ):
        self.name, self.summary, self.files, self.paper = name, summary, files, paper
        self.instruction_tuned_on = instruction_tuned_on

    def prompt(self, sample: Sample, style: str) -> str:
        return f"Question: {sample.text}\nAnswer:" if style in UNTUNED_STYLES else sample.text + SHORT

    def clean(self, text: str) -> str:
        first, *_ = text.strip().split("\n")
        return short_answer(first)

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        if not all(sample.truth.get("answers") for sample in samples):
            note = "The split has no answers: send submission.json to the evaluation server."
            return Scores({}, notes=(note,))
        values = [
            100 * self.accuracy(prediction["prediction"], sample.truth["answers"])
            for sample, prediction in zip(samples, predictions, strict=True)
        ]
        return Scores({"accuracy": mean(values)}, {"accuracy": values}, by_group(samples, values), (_CLEANED,))

    def accuracy(self, prediction: str, answers: Sequence[str]) -> float:
        return vqa_accuracy(prediction, answers)

    def submission(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Any:
        return [
            {**self.submitted_id(sample), "answer": prediction["prediction"]}
            for sample, prediction in zip(samples, predictions, strict=True)
        ]

    def submitted_id(self, sample: Sample) -> Mapping[str, Any]:
        return {"question_id": sample.truth["id"]}

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        answers = sample.truth.get("answers") or ("no answers",)
        counted = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
        listed = ", ".join(f"{answer} x{count}" if count > 1 else answer for answer, count in counted.items())
        return {"question": sample.text, "prediction": prediction["prediction"], "answers": listed}


class CocoQuestions(ShortAnswers):
    """VQAv2 and OK-VQA: a file of questions, one of annotations, and COCO's images."""

    def read(self, options: DataOptions) -> list[Sample]:
        split = options.split or "val2014"
        names = [name.format(split=split) for name in self.files]
        questions_path = data_files.find(options.data, names[:1], options.questions, "--questions")
        content = data_files.read_json(questions_path)
        if not isinstance(content, dict) or "questions" not in content:
            raise UserError(f"{questions_path} has no list `questions`: give the file of questions with --questions.")
        answers: dict[int | str, _Answers] = {}
        annotations_path = None
        if not split.startswith("test"):
            annotations_path = data_files.find(options.data, names[1:], options.annotations, "--annotations")
            answers = read_answers(annotations_path)
        samples = []
        for where, record in data_files.records(content["questions"], f"{questions_path}, questions"):
            question_id = data_files.identifier(record, "question_id", where)
            if annotations_path is not None and question_id not in answers:
                raise UserError(
                    f"{where}, question {question_id} has no answers in {annotations_path}: the two files belong to"
                    " different splits."
                )
            known = answers.get(question_id, _Answers())
            image_id = data_files.identifier(record, "image_id", where)
            image = coco_image(options.image_root, split, image_id)
            truth = {"id": question_id, "answers": known.texts}
            samples.append(
                Sample(
                    str(question_id),
                    (image,),
                    data_files.text(record, "question", where),
                    truth=truth,
                    group=known.type,
                )
            )
        return samples


class ListedQuestions(ShortAnswers):
    """VizWiz (a list) and TextVQA (`data`): questions with their answers and the names of their images in one file."""

    def read(self, options: DataOptions) -> list[Sample]:
        names = [name.format(split=options.split or "val") for name in self.files]
        path = data_files.find(options.data, names, options.annotations, "--annotations")
        content = data_files.read_json(path)
        return list(self._samples(content.get("data") if isinstance(content, dict) else content, path, options))

    def _samples(self, content: Any, path: Path, options: DataOptions) -> Iterator[Sample]:
        split = options.split or "val"
        for where, record in data_files.records(content, str(path)):
            question = data_files.text(record, "question", where)
            if "question_id" in record:
                own_id, name = record["question_id"], data_files.identifier(record, "image_id", where)
                places = [f"train_images/{name}.jpg", f"test_images/{name}.jpg", f"{name}.jpg"]
            else:
                own_id = name = data_files.text(record, "image", where)
                places = [f"{split}/{name}", f"images/{split}/{name}", str(name)]
            answers = _texts(record["answers"], where) if "answers" in record else ()
            image = data_files.existing(options.image_root, places)
            group = str(record.get("answer_type", ""))
            yield Sample(str(own_id), (image,), question, truth={"id": own_id, "answers": answers}, group=group)

    def submitted_id(self, sample: Sample) -> Mapping[str, Any]:
        return {"image" if isinstance(sample.truth["id"], str) else "question_id": sample.truth["id"]}


class Gqa(ShortAnswers):
    """GQA: questions by id with one answer each."""

    def read(self, options: DataOptions) -> list[Sample]:
        names = [name.format(split=options.split or "testdev") for name in self.files]
        path = data_files.find(options.data, names, options.annotations, "--annotations")
        content = data_files.read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} holds {data_files.kind(content)}: expected questions by id, as GQA's files have.")
        samples = []
        for question_id, record in content.items():
            where = f"{path}, question {question_id}"
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected an object, found {data_files.kind(record)}.")
            name = data_files.text(record, "imageId", where)
            image = data_files.existing(options.image_root, [f"images/{name}.jpg", f"{name}.jpg"])
            answers = (data_files.text(record, "answer", where),) if "answer" in record else ()
            types = record.get("types")
            group = str(types.get("structural", "")) if isinstance(types, dict) else ""
            truth = {"id": question_id, "answers": answers}
            question = data_files.text(record, "question", where)
            samples.append(Sample(question_id, (image,), question, truth=truth, group=group))
        return samples

    def accuracy(self, prediction: str, answers: Sequence[str]) -> float:
        return float(gqa_match(prediction, answers[0]))

    def submission(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Any:
        return [
            {"questionId": sample.id, "prediction": prediction["prediction"]}
            for sample, prediction in zip(samples, predictions, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class _Answers:
    """What people answered, and the type of the question."""

    texts: tuple[str, ...] = ()
    type: str = ""


def read_answers(path: Path) -> dict[int | str, _Answers]:
    """Read the answers of an official annotations file by question id."""
    content = data_files.read_json(path)
    if not isinstance(content, dict) or "annotations" not in content:
        raise UserError(f"{path} has no list `annotations`: give the file of answers with --annotations.")
    answers = {}
    for where, record in data_files.records(content["annotations"], f"{path}, annotations"):
        question_id = data_files.identifier(record, "question_id", where)
        group = str(record.get("question_type") or record.get("answer_type") or "")
        answers[question_id] = _Answers(_texts(record.get("answers"), f"{where}, question {question_id}"), group)
    return answers


def _texts(answers: Any, where: str) -> tuple[str, ...]:
    if not isinstance(answers, list) or len(answers) < 2:
        raise UserError(f"{where} has no list of `answers`: expected ten; remove the question, or repair the file.")
    texts = []
    for answer in answers:
        content = answer.get("answer") if isinstance(answer, dict) else answer
        if not isinstance(content, str):
            raise UserError(f"{where}: an answer is not text: repair the file.")
        texts.append(content)
    return tuple(texts)


def coco_image(root: Path, split: str, image_id: int | str) -> Path:
    """Return the path of a COCO image in its folder of the split, or directly below `root`."""
    number = f"{int(image_id):012d}" if str(image_id).isdigit() else str(image_id)
    folder = "test2015" if split.startswith("test") else split
    names = [f"COCO_{folder}_{number}.jpg", f"{number}.jpg"]
    return data_files.existing(root, [f"{prefix}{name}" for prefix in (f"{folder}/", "", "images/") for name in names])


_OPEN_ENDED = "OpenEnded_mscoco_{split}_questions.json"
TASKS = [
    CocoQuestions(
        "vqav2",
        "VQAv2 (val2014 by default; --split test-dev2015 writes the server's file)",
        (f"v2_{_OPEN_ENDED}", "v2_mscoco_{split}_annotations.json"),
        (
            PaperNumber("SEED-LLaMA-I 8B", "accuracy", 66.2, "test-dev"),
            PaperNumber("SEED-LLaMA-I 14B", "accuracy", 63.4),
        ),
        instruction_tuned_on=True,
    ),
    CocoQuestions(
        "okvqa",
        "OK-VQA validation",
        (_OPEN_ENDED, "mscoco_{split}_annotations.json"),
        (
            PaperNumber("SEED-LLaMA-I 8B", "accuracy", 45.9),
            PaperNumber("SEED-LLaMA-I 14B", "accuracy", 43.2, "from memory"),
        ),
        instruction_tuned_on=True,
    ),
    ListedQuestions(
        "vizwiz",
        "VizWiz validation",
        ("{split}.json",),
        (
            PaperNumber("SEED-LLaMA-I 8B", "accuracy", 55.1),
            PaperNumber("SEED-LLaMA-I 14B", "accuracy", 49.4, "from memory"),
        ),
        instruction_tuned_on=True,
    ),
    ListedQuestions("textvqa", "TextVQA validation", ("TextVQA_*_{split}.json",), instruction_tuned_on=True),
    Gqa(
        "gqa",
        "GQA testdev-balanced, exact match",
        ("{split}_balanced_questions.json",),
        (PaperNumber("SEED-OPT 2.7B", "accuracy", 28.8),),
    ),
]
