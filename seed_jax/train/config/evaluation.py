"""Options of evaluations: of a run of several tasks (`configs/eval.py`), and of a task that runs while training."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.train.config.schema import Problems, Section, negative, not_positive, parse

STAGE = "evaluation"  # `config.stage` of an evaluation
_DECODING = {field.name: getattr(SamplingParams(), field.name) for field in dataclasses.fields(SamplingParams)}


def _fits(value: Any, default: Any) -> bool:
    """Return whether a value has the type of an option's default; of optional ones any."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return default is None or isinstance(value, type(default))


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    """A task of `seed-jax eval --list`, its data and its settings; "" and 0 take the task's own.

    Attributes:
        task: name of the task; "" takes the key of the entry.
        data: directory of the official files.
        annotations: file with captions, answers or questions, if it is not found by its official name.
        questions: file of questions of tasks that have two files.
        images: directory of the images or videos, if it is not `data`.
        split: split of the dataset.
        frames: frames per video.
        wordnet: directory of WordNet's database files, for WUPS.
        limit: use the first so many samples only; 0 uses all.
        max_bad: samples that may be left out as unreadable.
        batch_size: samples at a time.
        decoding: fields of `SamplingParams` that replace the task's, such as {"beams": 5}.
    """

    task: str = ""
    data: str = ""
    annotations: str = ""
    questions: str = ""
    images: str = ""
    split: str = ""
    frames: int = 0
    wordnet: str = ""
    limit: int = 0
    max_bad: int = 0
    batch_size: int = 8
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def data_options(self, root: Path = Path()) -> dict[str, Any]:
        """Return the fields of `DataOptions`; relative paths are taken from `root`."""
        names = ("data", "annotations", "questions", "images", "wordnet")
        paths = {name: root / getattr(self, name) if getattr(self, name) else None for name in names}
        return {**paths, "split": self.split or None, "frames": self.frames or None}

    def problems(self) -> Problems:
        yield from not_positive(self, "batch_size")
        yield from negative(self, "frames", "limit", "max_bad")
        for name, value in self.decoding.items():
            if name not in _DECODING:
                yield "decoding", f"has {name!r}, expected some of {', '.join(_DECODING)}"
            elif not _fits(value, _DECODING[name]):
                yield "decoding", f"has {name}={value!r}, expected a value such as {_DECODING[name]!r}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingTaskConfig(TaskConfig):
    """A task that runs while training.

    Attributes:
        name: prefix of the metrics; "" takes the task's name.
        every_steps: run after every so many steps and after the last; 0 takes `evaluate.every_steps`.
        samples: predictions that are shown in TensorBoard and Weights & Biases.
    """

    limit: int = 200
    name: str = ""
    every_steps: int = 0
    samples: int = 4

    def problems(self) -> Problems:
        yield from super().problems()
        yield from negative(self, "every_steps", "samples")
        for key in ("task", "data"):
            if not getattr(self, key):
                yield key, "is empty: name a task that `seed-jax eval --list` shows and the directory of its data"


def training_tasks(entries: Sequence[Mapping[str, Any]]) -> dict[str, TrainingTaskConfig]:
    """Parse `evaluate.tasks`; return the tasks by the name of their metrics.

    Raises:
        UserError: an entry is wrong, or two have one name.
    """
    tasks: dict[str, TrainingTaskConfig] = {}
    for index, entry in enumerate(entries):
        task = parse(TrainingTaskConfig, entry, f"evaluate.tasks[{index}].")
        name = task.name or task.task
        if name in tasks or name == "eval" or Path(name).name != name:
            raise UserError(f"evaluate.tasks[{index}] is called {name!r}, expected a name of its own: set `name`.")
        tasks[name] = task
    return tasks


@dataclasses.dataclass(frozen=True)
class EvaluatedModelConfig(Section):
    """The model under evaluation; "" takes what the model's config.json names, or the default.

    Attributes:
        directory: model directory, bundle or training workdir.
        tokenizer: image tokenizer.
        decoder: image decoder, for tasks that draw.
        clip: folder of a Hugging Face CLIP model, for tasks that compare images.
        text_vocabulary: vocab.txt of bert-base-uncased, for retrieval with an imported image tokenizer.
        style: prompt style.
        dtype: compute dtype.
        quantize: "int8" or "int4" quantizes the language model's kernels.
        quantize_vit: "int8" or "int4" quantizes the image tokenizer's ViT.
        memory: refuse to load what needs more, such as "16GiB".
        tensor_parallel: devices that share the weights of one copy of the model.
    """

    directory: str = ""
    tokenizer: str = ""
    decoder: str = ""
    clip: str = ""
    text_vocabulary: str = ""
    style: str = ""
    dtype: str = ""
    quantize: str = ""
    quantize_vit: str = ""
    memory: str = ""
    tensor_parallel: int = 1

    def problems(self) -> Problems:
        yield from not_positive(self, "tensor_parallel")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Section):
    """Options of an evaluation: tasks that run on one model and share a report.

    Attributes:
        stage: "evaluation".
        model: the model.
        data_root: directory that relative paths of tasks start from.
        tasks: name -> options of `TaskConfig`; results are written into a directory of this name.
    """

    stage: str = STAGE
    model: EvaluatedModelConfig = EvaluatedModelConfig()
    data_root: str = "."
    tasks: dict[str, Any] = dataclasses.field(default_factory=dict)
