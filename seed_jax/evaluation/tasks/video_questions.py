"""Questions about videos: MSVD-QA, MSRVTT-QA (top-1 accuracy) and NExT-QA (multiple choice by likelihood)."""

from collections.abc import Sequence
from pathlib import Path

from seed_jax.errors import UserError
from seed_jax.evaluation import data_files
from seed_jax.evaluation.answering import LETTERS
from seed_jax.evaluation.metrics.vqa_accuracy import normalize_answer, short_answer
from seed_jax.evaluation.task import DataOptions, Frames, PaperNumber, Prediction, Sample, Scores, mean
from seed_jax.evaluation.tasks.multiple_choice import Ranked
from seed_jax.evaluation.tasks.question_answering import ShortAnswers

_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")


def find_video(root: Path, name: str) -> Path:
    """Return a video, or the directory of its extracted frames, by its name with or without a suffix."""
    places = [root / folder / name for folder in ("", "videos", "YouTubeClips", "TrainValVideo", "TestVideo", "frames")]
    for place in places:
        for path in (place, *(place.with_name(place.name + suffix) for suffix in _SUFFIXES)):
            if path.exists():
                return path
    return places[0]


class OpenVideoQuestions(ShortAnswers):
    """A list of questions with one answer each; right if both texts are equal."""

    frames = 4

    def read(self, options: DataOptions) -> list[Sample]:
        names = [name.format(split=options.split or "test") for name in self.files]
        path = data_files.find(options.data, names, options.annotations, "--annotations")
        samples = []
        for index, (where, record) in enumerate(data_files.records(data_files.read_json(path), str(path))):
            key = next((key for key in ("video", "video_id") if key in record), "video_id")
            video = str(data_files.identifier(record, key, where))
            name = f"video{video}" if key == "video_id" and self.name == "msrvtt_qa" and video.isdigit() else video
            if key == "video_id" and self.name == "msvd_qa" and video.isdigit():
                name = f"vid{video}"
            number = record.get("question_id", record.get("id", index))
            frames = Frames(find_video(options.image_root, name), options.frames or self.frames)
            answers = (data_files.text(record, "answer", where),)
            question = data_files.text(record, "question", where)
            samples.append(
                Sample(
                    str(number), (frames,), question, truth={"id": number, "answers": answers}, group=_first(question)
                )
            )
        return samples

    def accuracy(self, prediction: str, answers: Sequence[str]) -> float:
        return float(prediction == short_answer(answers[0]))

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        scores = super().score(samples, predictions)
        normalized = [
            100.0 * (normalize_answer(prediction["prediction"]) == normalize_answer(sample.truth["answers"][0]))
            for sample, prediction in zip(samples, predictions, strict=True)
        ]
        return Scores(
            {**scores.metrics, "accuracy_normalized": mean(normalized)},
            {**scores.per_sample, "accuracy_normalized": normalized},
            scores.groups,
            (*scores.notes, "Scores that another language model judges are not comparable with these."),
        )


def _first(question: str) -> str:
    return question.split(" ", 1)[0].lower()


class NextQa(Ranked):
    """NExT-QA with five choices; the paper's number is most likely of its open-ended sibling and not comparable."""

    name = "nextqa"
    summary = "NExT-QA multiple choice (8 frames), choices ranked by likelihood"
    instruction_tuned_on = True

    def read(self, options: DataOptions) -> list[Sample]:
        path = data_files.find(options.data, [f"{options.split or 'val'}.csv"], options.annotations, "--annotations")
        columns = ["video", "question", "answer", "qid", "type"]
        rows = data_files.read_table(path, ",", columns)
        if rows and "a0" not in rows[0]:
            raise UserError(f"{path} has no choices a0 to a4: it is NExT-OE, the open-ended sibling of NExT-QA.")
        samples = []
        for number, row in enumerate(rows, 1):
            choices = tuple(row.get(f"a{index}") or "" for index in range(5))
            if row["answer"] not in list("01234") or not all(choices):
                raise UserError(f"{path}, row {number}: expected five choices and an answer from 0 to 4.")
            frames = Frames(find_video(options.image_root, row["video"]), options.frames or 8)
            question = row["question"] if row["question"].endswith("?") else f"{row['question']}?"
            answer = LETTERS[int(row["answer"])]
            samples.append(
                Sample(f"{row['video']}_{row['qid']}", (frames,), question, choices, {"answer": answer}, row["type"])
            )
        return samples


TASKS = [
    OpenVideoQuestions(
        "msvd_qa",
        "MSVD-QA test, top-1 accuracy (4 frames)",
        ("{split}_qa.json", "qa_{split}.json"),
        (
            PaperNumber("SEED-LLaMA-I 8B", "accuracy", 40.9, "from memory"),
            PaperNumber("SEED-LLaMA-I 14B", "accuracy", 45.2, "from memory"),
        ),
        instruction_tuned_on=True,
    ),
    OpenVideoQuestions(
        "msrvtt_qa",
        "MSRVTT-QA test, top-1 accuracy (4 frames)",
        ("{split}_qa.json", "qa_{split}.json"),
        (
            PaperNumber("SEED-LLaMA-I 8B", "accuracy", 30.8, "from memory"),
            PaperNumber("SEED-LLaMA-I 14B", "accuracy", 35.3, "from memory"),
        ),
        instruction_tuned_on=True,
    ),
    NextQa(),
]
