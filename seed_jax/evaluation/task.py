"""What an evaluation task is: a reader of official data, a prompt, decoding options, a scorer, and the paper's numbers.

A task is an instance of a subclass of `Task` in the list `TASKS` of a module in `evaluation/tasks`; adding one is one
file there. `answering` has the two usual ways to predict: generated text and ranked choices.
"""

import abc
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax import images as image_files
from seed_jax import video
from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import SamplingParams

Prediction = dict[str, Any]
"""What a task predicts for one sample, as JSON; the runner adds the sample's id."""
DRAWN = "drawn"  # key of a prediction: an image, which the runner takes out and writes as a PNG file


@dataclasses.dataclass(frozen=True)
class PaperNumber:
    """A published result: `metric` is a key of `Scores.metrics`."""

    model: str
    metric: str
    value: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Frames:
    """A video, of which evenly spaced frames are used.

    Attributes:
        path: a video file, or a directory of extracted frames whose names sort by time.
        count: number of frames.
    """

    path: Path
    count: int

    def load(self) -> list[Image.Image]:
        """Return the middle frame of each of `count` equal segments."""
        if not self.path.is_dir():
            return video.frames(self.path, self.count)
        files = sorted(file for file in self.path.iterdir() if file.suffix.lower() in image_files.EXTENSIONS)
        if not files:
            return [image_files.load(self.path)]  # raises with the name of the directory
        edges = np.linspace(0, len(files), self.count + 1).astype(int)
        middles = [(int(start) + max(int(end) - 1, int(start))) // 2 for start, end in itertools.pairwise(edges)]
        return [image_files.load(files[index]) for index in middles]


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a task; its images are decoded when it is its turn.

    Attributes:
        id: unique in the task, as official files write it.
        images: paths, encoded bytes, decoded images, or videos.
        text: question or caption; what the prompt is made from.
        choices: of a multiple-choice question.
        truth: what the scorer and the submission file need.
        group: question type or domain, for scores by group.
    """

    id: str
    images: tuple[Path | bytes | Image.Image | Frames, ...] = ()
    text: str = ""
    choices: tuple[str, ...] = ()
    truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""

    def load_images(self) -> list[Image.Image]:
        """Decode the images.

        Raises:
            UserError: one is missing or unreadable.
        """
        loaded: list[Image.Image] = []
        for number, source in enumerate(self.images, 1):
            if isinstance(source, Frames):
                loaded += source.load()
            elif isinstance(source, Image.Image):
                loaded.append(source)
            elif isinstance(source, bytes):
                loaded.append(image_files.load(source, f"image {number} of sample {self.id}"))
            else:
                loaded.append(image_files.load(source))
        return loaded


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedSample:
    """A sample with its decoded images."""

    sample: Sample
    images: list[Image.Image]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Where a task's data is.

    Attributes:
        data: directory with the official files.
        annotations: the file with captions, answers or questions, if it is not found by its official name.
        questions: the file of questions of tasks that have two files.
        images: directory of the images or videos, if it is not `data` itself.
        split: of files that hold several, or whose names tell the split.
        frames: frames per video; None uses the task's number.
        wordnet: directory of WordNet's database files, for tasks that compare words by meaning.
    """

    data: Path
    annotations: Path | None = None
    questions: Path | None = None
    images: Path | None = None
    split: str | None = None
    frames: int | None = None
    wordnet: Path | None = None

    def __post_init__(self):
        if self.frames is not None and self.frames < 1:
            raise UserError(f"The number of frames is {self.frames}, expected at least 1.")

    @property
    def image_root(self) -> Path:
        return self.images or self.data


@dataclasses.dataclass(frozen=True)
class Scores:
    """The result of scoring.

    Attributes:
        metrics: as papers print them: accuracies and similarities times 100.
        per_sample: for metrics that are means over samples, the samples' values on the same scale, in their order.
        groups: the main metric by question type or domain.
        notes: what a reader of the numbers must know.
    """

    metrics: dict[str, float]
    per_sample: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    groups: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Task(abc.ABC):
    """An evaluation task.

    Attributes:
        name: as on the command line.
        summary: one line for `seed-jax eval --list`.
        metric: the main metric, a key of `Scores.metrics`.
        paper: published results to compare with.
        sampling_params: decoding options of the paper's protocol.
        instruction_tuned_on: whether the official instruction tuning trained on this dataset, so that scores of
            instruction-tuned models are not zero-shot.
        draws: whether images are drawn, which needs a decoder.
        needs_clip: whether images are compared by CLIP.
        right_from: value of a sample's main metric from which the report shows it as right; None for metrics that tell
            no right from wrong.
    """

    name: str
    summary: str
    metric: str
    paper: tuple[PaperNumber, ...] = ()
    sampling_params: SamplingParams = SamplingParams()
    instruction_tuned_on: bool = False
    draws: bool = False
    needs_clip: bool = False
    right_from: float | None = 50.0

    def configured(self, options: DataOptions) -> "Task":
        """Return the task for a run; tasks whose scorer depends on the options return a copy of themselves."""
        del options
        return self

    @abc.abstractmethod
    def read(self, options: DataOptions) -> list[Sample]:
        """Read the samples without decoding images.

        Raises:
            UserError: a file is missing, damaged or of another split; file and record are named.
        """

    def select(self, samples: list[Sample]) -> list[Sample]:
        """Return the samples of a run after --limit; tasks whose samples depend on one another complete them here."""
        return samples

    @abc.abstractmethod
    def predict(self, batch: Sequence[LoadedSample], model: Any, params: SamplingParams) -> list[Prediction]:
        """Return the prediction of each sample of a batch.

        Args:
            batch: the samples.
            model: an `EvalModel`, or for tasks of another package what their runs open.
            params: decoding options.
        """

    @abc.abstractmethod
    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        """Score the predictions of samples, in the same order."""

    def submission(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Any:
        """Return what the official scorer or evaluation server takes, as JSON; None if there is none."""
        return None

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        """Return named texts for the report's example of a sample."""
        return {"prompt": sample.text, "prediction": str(prediction.get("prediction", ""))}


def drawn_image_path(directory: Path, sample_id: str) -> Path:
    """Return where the image that was drawn for a sample is, in the directory of its task."""
    return directory / "images" / f"{sample_id.replace('/', '_')}.png"


def mean(values: Sequence[float]) -> float:
    """Return the mean of a non-empty list."""
    return float(np.mean(np.asarray(values, np.float64)))


def by_group(samples: Sequence[Sample], values: Sequence[float]) -> dict[str, float]:
    """Return the mean value of each group, by name; samples without a group are left out."""
    groups: dict[str, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        if sample.group:
            groups.setdefault(sample.group, []).append(value)
    return {name: mean(group) for name, group in sorted(groups.items())}
