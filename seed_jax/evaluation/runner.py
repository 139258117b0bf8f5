"""Run evaluation tasks: predict in batches, resume after a kill, score, and write what evaluation servers take.

Each task has a directory below --out:

    run.json           settings, model fingerprint and data; a run with others is refused
    predictions.jsonl  one line for each sample, in order, written batch by batch
    submission.json    for official scorers and servers
    results.json       scores, intervals and settings

Whole batches are appended with one write, and an incomplete last batch is predicted again: batches are the same
however often a run is killed, and so are the results.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import seed_jax
from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.significance import bootstrap_interval
from seed_jax.evaluation.task import (
    DRAWN,
    DataOptions,
    LoadedSample,
    Prediction,
    Sample,
    Scores,
    Task,
    drawn_image_path,
)
from seed_jax.files import atomic_path, locked, parse_json, read_json, write_bytes, write_json
from seed_jax.inference.generation.sampling_params import SPEED_OPTIONS, SamplingParams

RUN, PREDICTIONS, SUBMISSION, RESULTS = "run.json", "predictions.jsonl", "submission.json", "results.json"
_BAD = "bad"  # key of a prediction: why its sample was left out


@dataclasses.dataclass(frozen=True)
class Shard:
    """The share of the samples that one process predicts: every `count`-th, starting at `index` - 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "I/N".

        Raises:
            UserError: it is not two numbers with 1 <= I <= N.
        """
        parts = text.split("/")
        if len(parts) != 2 or not all(part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
            raise UserError(f"--shard is {text!r}, expected I/N with I from 1 to N, such as 1/8.")
        return cls(int(parts[0]), int(parts[1]))

    def file_name(self) -> str:
        """Return the name of the shard's predictions."""
        return PREDICTIONS if self.count == 1 else f"predictions-{self.index}-of-{self.count}.jsonl"

    def all(self) -> list["Shard"]:
        """Return all shards of the run."""
        return [Shard(index, self.count) for index in range(1, self.count + 1)]

    def part(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the shard's samples."""
        return list(samples[self.index - 1 :: self.count])


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a task is run.

    Attributes:
        batch_size: samples at a time; other sizes may round differently, so a run keeps its own.
        limit: use the first so many samples only.
        shard: which part of the samples this process predicts.
        max_bad: how many samples may be left out because an image is missing or unreadable.
        decoding: fields of `SamplingParams` that replace the task's.
    """

    batch_size: int = 8
    limit: int | None = None
    shard: Shard = Shard()
    max_bad: int = 0
    decoding: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, value, smallest in (
            ("--batch-size", self.batch_size, 1),
            ("--limit", self.limit, 1),
            ("--max-bad", self.max_bad, 0),
        ):
            if value is not None and value < smallest:
                raise UserError(f"{name} is {value}, expected at least {smallest}.")


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """A finished task: what the report shows.

    Attributes:
        results: content of results.json.
        samples: the scored samples.
        predictions: theirs, in the same order.
        directory: of the task's files.
    """

    task: Task
    results: dict[str, Any]
    samples: list[Sample]
    predictions: list[Prediction]
    scores: Scores
    directory: Path


def run_task(
    task: Task,
    data: DataOptions,
    directory: Path,
    options: RunOptions,
    model_description: dict[str, Any],
    open_model: Callable[[], Any],
) -> TaskRun | None:
    """Predict what is missing, then score.

    Args:
        task: the task.
        data: where its data is.
        directory: of the task's files; created.
        options: how to run.
        model_description: the model's fingerprint and settings, which a resumed run must share.
        open_model: loads the model that `task.predict` takes (for `evaluation/tasks` an `EvalModel`); called only if
            something is left to predict.

    Returns:
        The scored run; None as long as other shards have predictions missing.

    Raises:
        UserError: the data is unusable, the directory holds another run, or more than `max_bad` samples are bad.
    """
    task = task.configured(data)
    samples = _select(task, data, options.limit)
    params = dataclasses.replace(task.sampling_params, **options.decoding)
    directory.mkdir(parents=True, exist_ok=True)
    # Exclusive over all shards: the first one writes run.json, the others compare theirs with it.
    with locked(directory / f".{RUN}.lock", str(directory / RUN), wait=True):
        _check_run(directory, _settings(task, samples, params, options, model_description), data)
    path = directory / options.shard.file_name()
    with locked(directory / f".{path.name}.lock", str(path)):
        _predict_missing(task, options.shard.part(samples), path, options, params, open_model)
    lines: dict[str, Prediction] = {}
    for shard in options.shard.all():
        part, predictions = shard.part(samples), _complete_lines(directory / shard.file_name())
        if len(predictions) < len(part):
            logging.info("%s: shard %d/%d is not complete; scores follow with the last one.",
                         task.name, shard.index, shard.count)  # fmt: skip
            return None
        lines |= {sample.id: line for sample, line in zip(part, predictions, strict=True)}
    return _finish(task, samples, lines, directory)


def load_run(directory: Path, find_task: Callable[[str], Task]) -> TaskRun:
    """Score a complete run again from its files.

    Args:
        directory: of a task's files.
        find_task: name -> task.

    Raises:
        UserError: the directory holds no complete run, or the data has changed since.
    """
    stored = read_json(directory / RUN, "give the directory of a task of `seed-jax eval`")
    if "data" not in stored:
        raise UserError(f"{directory / RUN} does not name the data: run the task again.")
    paths = {name: stored["data"].get(name) for name in ("data", "annotations", "questions", "images", "wordnet")}
    data = DataOptions(
        **{name: None if value is None else Path(value) for name, value in paths.items()},  # pyright: ignore
        split=stored["data"].get("split"),
        frames=stored["data"].get("frames"),
    )
    task = find_task(stored["task"]).configured(data)
    samples = _select(task, data, stored["limit"])
    if _digest(samples) != stored["samples_sha256"]:
        raise UserError(f"The data of {directory} has changed since the run ({data.data}): restore it, or run again.")
    lines: dict[str, Prediction] = {}
    for shard in Shard(1, stored["shards"]).all():
        part, predictions = shard.part(samples), _complete_lines(directory / shard.file_name())
        if len(predictions) != len(part):
            raise UserError(f"{directory} lacks predictions of shard {shard.index}/{shard.count}: run it to its end.")
        lines |= {sample.id: line for sample, line in zip(part, predictions, strict=True)}
    return _finish(task, samples, lines, directory)


def _select(task: Task, data: DataOptions, limit: int | None) -> list[Sample]:
    return task.select(_unique(task.read(data), task)[:limit])


def _predict_missing(
    task: Task,
    samples: list[Sample],
    path: Path,
    options: RunOptions,
    params: SamplingParams,
    open_model: Callable[[], Any],
) -> None:
    """Append the predictions of the batches that are not in `path`."""
    lines = _complete_lines(path)
    if len(lines) > len(samples):
        raise UserError(f"{path} holds {len(lines)} predictions for {len(samples)} samples: choose another --out.")
    for number, (line, sample) in enumerate(zip(lines, samples, strict=False), 1):
        if line.get("id") != sample.id:
            raise UserError(
                f"{path}, line {number} is about {line.get('id')}, expected {sample.id}: choose another --out."
            )
    if len(lines) < len(samples):  # a batch that was cut off is predicted again as a whole
        lines = lines[: len(lines) // options.batch_size * options.batch_size]
    bad = [line[_BAD] for line in lines if _BAD in line]
    text = "".join(_line(line) for line in lines)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_bytes(path, text.encode())
    if len(lines) == len(samples):
        return
    if lines:
        logging.info("%s: %d of %d samples are already predicted.", task.name, len(lines), len(samples))
    batches = [
        samples[start : start + options.batch_size] for start in range(len(lines), len(samples), options.batch_size)
    ]
    model = open_model()
    with (
        path.open("ab") as file,
        concurrent.futures.ThreadPoolExecutor(1) as reader,
        tqdm(total=len(samples), initial=len(lines), unit="sample", desc=task.name, disable=None) as progress,
    ):
        started, waited = time.perf_counter(), 0.0
        upcoming = reader.submit(_load, batches[0])
        for number, batch in enumerate(batches, 1):
            asked = time.perf_counter()
            loaded, reasons = upcoming.result()
            waited += time.perf_counter() - asked
            if number < len(batches):  # images are decoded while the model works
                upcoming = reader.submit(_load, batches[number])
            for reason in reasons.values():
                logging.warning("%s: left out: %s", task.name, reason)
            bad += reasons.values()
            if len(bad) > options.max_bad:
                raise UserError(
                    f"{len(bad)} samples of {task.name} are unusable, the last one because of: {bad[-1]} Repair the"
                    " data, or allow more with --max-bad."
                )
            predictions = task.predict(loaded, model, params) if loaded else []
            for one, prediction in zip(loaded, predictions, strict=True):
                if DRAWN in prediction:
                    _save_image(prediction.pop(DRAWN), drawn_image_path(path.parent, one.sample.id))
            by_id = {one.sample.id: prediction for one, prediction in zip(loaded, predictions, strict=True)}
            records = [
                {"id": sample.id, **({_BAD: reasons[sample.id]} if sample.id in reasons else by_id[sample.id])}
                for sample in batch
            ]
            file.write("".join(map(_line, records)).encode())
            file.flush()
            progress.update(len(batch))
    seconds = time.perf_counter() - started
    logging.info(
        "%s: %d samples in %.1f s, data wait %.1f %%.",
        task.name, sum(map(len, batches)), seconds, 100 * waited / seconds,
    )  # fmt: skip


def _save_image(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def _load(batch: Sequence[Sample]) -> tuple[list[LoadedSample], dict[str, str]]:
    """Return the samples whose images could be decoded, and why the others could not."""
    loaded, reasons = [], {}
    for sample in batch:
        try:
            loaded.append(LoadedSample(sample, sample.load_images()))
        except UserError as error:
            reasons[sample.id] = f"sample {sample.id}: {error}"
    return loaded, reasons


def _line(record: Prediction) -> str:
    return json.dumps(record, ensure_ascii=True) + "\n"


def _complete_lines(path: Path) -> list[Prediction]:
    """Return the predictions in a file without an incomplete last line."""
    if not path.is_file():
        return []
    text = path.read_bytes()
    try:
        return [parse_json(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and run again.") from error


def _settings(
    task: Task, samples: Sequence[Sample], params: SamplingParams, options: RunOptions, model: dict[str, Any]
) -> dict[str, Any]:
    """Return what must be equal in all processes and restarts of a run."""
    stored = json.loads(json.dumps(dataclasses.asdict(params)))
    decoding = {name: value for name, value in stored.items() if name not in SPEED_OPTIONS}
    return {
        "task": task.name,
        "model": model,
        "samples": len(samples),
        "samples_sha256": _digest(samples),
        "decoding": decoding,
        "batch_size": options.batch_size,
        "limit": options.limit,
        "shards": options.shard.count,
    }


def _digest(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.id, sample.text, sample.choices, sorted(sample.truth.items()))).encode())
    return digest.hexdigest()


def _check_run(directory: Path, settings: dict[str, Any], data: DataOptions) -> None:
    """Write `run.json`, or compare it with the settings; the data may have been moved since, but not changed."""
    path = directory / RUN
    if not path.exists():
        if any(directory.glob("predictions*.jsonl")):
            raise UserError(f"{directory} holds predictions without {RUN}: choose another --out.")
        places = {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(data).items()
        }
        write_json(path, {**settings, "data": places})
        return
    stored = read_json(path, "delete the directory, or choose another --out")
    keys = (settings.keys() | stored.keys()) - {"data"}
    different = sorted(key for key in keys if settings.get(key) != stored.get(key))
    if different:
        raise UserError(
            f"{directory} holds a run with other settings ({', '.join(different)}): choose another --out, or delete it."
        )


def _unique(samples: list[Sample], task: Task) -> list[Sample]:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise UserError(f"The data of {task.name} has sample {sample.id} twice: repair the file.")
        seen.add(sample.id)
    return samples


def _finish(task: Task, samples: list[Sample], lines: dict[str, Prediction], directory: Path) -> TaskRun:
    """Score complete predictions and write results and submission."""
    scored = [sample for sample in samples if _BAD not in lines[sample.id]]
    predictions = [lines[sample.id] for sample in scored]
    if not scored:
        raise UserError(f"All {len(samples)} samples of {task.name} are unusable: see {directory / PREDICTIONS}.")
    settings = read_json(directory / RUN)
    if settings["shards"] > 1:
        write_bytes(directory / PREDICTIONS, "".join(_line(lines[sample.id]) for sample in samples).encode())
    scores = task.score(scored, predictions)
    intervals = {name: bootstrap_interval(np.asarray(values)) for name, values in scores.per_sample.items() if values}
    bad = [lines[sample.id][_BAD] for sample in samples if _BAD in lines[sample.id]]
    results = {
        "name": directory.name,
        **settings,
        "version": seed_jax.__version__,
        "metric": task.metric,
        "metrics": scores.metrics,
        "intervals": {name: {"low": interval.low, "high": interval.high} for name, interval in intervals.items()},
        "groups": scores.groups,
        "scored": len(scored),
        "bad": bad,
        "notes": list(scores.notes),
        "paper": [dataclasses.asdict(number) for number in task.paper],
        "instruction_tuned_on": task.instruction_tuned_on,
        "order": [sample.id for sample in scored],
        "per_sample": scores.per_sample,
    }
    submission = task.submission(scored, predictions)
    if submission is not None:
        write_json(directory / SUBMISSION, submission)
    write_json(directory / RESULTS, results)
    return TaskRun(task, results, scored, predictions, scores, directory)
