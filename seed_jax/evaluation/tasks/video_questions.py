"""Questions about videos: MSVD-QA and MSRVTT-QA (top-1 accuracy), NExT-QA (multiple choice) and NExT-OE (WUPS)."""

import copy
from collections.abc import Sequence
from pathlib import Path

from seed_jax.errors import UserError
from seed_jax.evaluation import data_files
from seed_jax.evaluation.answering import LETTERS
from seed_jax.evaluation.metrics.vqa_accuracy import normalize_answer, short_answer
from seed_jax.evaluation.metrics.wups import WordNet, wups
from seed_jax.evaluation.task import DataOptions, Frames, PaperNumber, Prediction, Sample, Scores, by_group, mean
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
    """NExT-QA with five choices; the paper's number is most likely of its open-ended sibling, `nextqa_open`."""

    name = "nextqa"
    summary = "NExT-QA multiple choice (8 frames), choices ranked by likelihood"
    instruction_tuned_on = True

    def read(self, options: DataOptions) -> list[Sample]:
        path = data_files.find(options.data, [f"{options.split or 'val'}.csv"], options.annotations, "--annotations")
        columns = ["video", "question", "answer", "qid", "type"]
        rows = data_files.read_table(path, ",", columns)
        if rows and "a0" not in rows[0]:
            raise UserError(f"{path} has no choices a0 to a4: it is NExT-OE's, run the task nextqa_open.")
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


class NextOe(ShortAnswers):
    """NExT-OE, the open-ended questions: WUPS with a WordNet directory; without one, answers are not scored."""

    wordnet: WordNet | None = None
    _SECOND = "add_reference_answer_test.json"  # second answers to questions of the test split

    def __init__(self):
        super().__init__(
            "nextqa_open",
            "NExT-OE validation, open-ended (8 frames), WUPS; needs --wordnet DIR for scores",
            ("{split}.csv",),
            (
                PaperNumber("SEED-LLaMA-I 8B", "WUPS", 24.9, "from memory"),
                PaperNumber("SEED-LLaMA-I 14B", "WUPS", 24.7, "from memory"),
            ),
            instruction_tuned_on=True,
        )
        self.metric = "WUPS"

    def configured(self, options: DataOptions) -> "NextOe":
        task = copy.copy(self)
        task.wordnet = None if options.wordnet is None else WordNet.load(options.wordnet)
        return task

    def read(self, options: DataOptions) -> list[Sample]:
        split = options.split or "val"
        path = data_files.find(options.data, [f"{split}.csv"], options.annotations, "--annotations")
        rows = data_files.read_table(path, ",", ["video", "question", "answer", "qid", "type"])
        if rows and "a0" in rows[0]:
            raise UserError(f"{path} has choices a0 to a4: it is NExT-QA's, run the task nextqa.")
        second = _second_answers(path.with_name(self._SECOND)) if split == "test" else {}
        samples = []
        for number, row in enumerate(rows, 1):
            answers = [row["answer"], second.get((row["video"], row["qid"])), row.get("additional_ref_answer")]
            if not row["answer"]:
                raise UserError(f"{path}, row {number}: the answer is empty.")
            question = row["question"] if row["question"].endswith("?") else f"{row['question']}?"
            frames = Frames(find_video(options.image_root, row["video"]), options.frames or 8)
            truth = {
                "video": row["video"],
                "qid": row["qid"],
                "answers": tuple(answer for answer in answers if answer),
            }
            kind = "TN" if row["type"] == "TP" else row["type"]
            samples.append(Sample(f"{row['video']}_{row['qid']}", (frames,), question, truth=truth, group=kind))
        return samples

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        if self.wordnet is None:
            return Scores({}, notes=("WUPS compares words by WordNet: give its directory with --wordnet to score.",))
        values = {
            name: [
                100 * max(wups(prediction["prediction"], answer, sample.group, self.wordnet, alpha)
                          for answer in sample.truth["answers"])
                for sample, prediction in zip(samples, predictions, strict=True)
            ]
            for name, alpha in (("WUPS", 0.0), ("WUPS_0.9", 0.9))
        }  # fmt: skip
        note = "Words are reduced to lemmas by WordNet's morphology alone; NExT-OE's script also tags parts of speech."
        metrics = {name: mean(own) for name, own in values.items()}
        return Scores(metrics, values, by_group(samples, values["WUPS"]), (note,))

    def submission(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, dict[str, str]]:
        answers: dict[str, dict[str, str]] = {}
        for sample, prediction in zip(samples, predictions, strict=True):
            answers.setdefault(sample.truth["video"], {})[sample.truth["qid"]] = prediction["prediction"]
        return answers


def _second_answers(path: Path) -> dict[tuple[str, str], str]:
    """Return the second answers by video and question, if the file is there."""
    content = data_files.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict) or not all(isinstance(answers, dict) for answers in content.values()):
        raise UserError(f"{path}: expected second answers as {{video: {{question: text}}}}.")
    return {(video, qid): str(answer) for video, answers in content.items() for qid, answer in answers.items()}


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
    NextOe(),
]
