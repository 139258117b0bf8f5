"""Synthetic scenes, drawn from a short description such as `{"task": "captions", "count": 2000, "seed": 1}`.

Descriptions are files named `*.world.json`. `task` is one of captions (tasks pretrain.image_text_pair, sft.qa),
questions (sft.conversation), edits (sft.edit, pretrain.edit), differences (sft.difference), stories
(pretrain.interleaved, sft.interleaved); `side` is the image size in pixels (16 to 256, default 64); with
`"held_out": true` every sample shows attribute combinations that all other samples lack; `num_objects` fixes the number
of objects per scene (default: one to three). Any number of samples, always the same for the same description.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax.data.sources.samples import InputFile, RawSample, find_files, name_files
from seed_jax.data.world import TASKS, Scene, make_sample, render
from seed_jax.errors import UserError
from seed_jax.files import parse_json, read_text

SIDE = 64
MAX_SIDE = 256  # image tokenizers take 224; a side of 4096 would take seconds per sample


@dataclasses.dataclass(frozen=True)
class WorldDescription:
    """The content of a description file.

    Attributes:
        task: kind of samples, a key of `world.TASKS`.
        count: number of samples.
        seed: seed of all random choices.
        held_out: whether every sample shows a held-out attribute combination, or none does.
        side: image size in pixels.
        num_objects: objects per scene, or None for one to three.
    """

    task: str
    count: int
    seed: int = 0
    held_out: bool = False
    side: int = SIDE
    num_objects: int | None = None


class WorldSource:
    """Draw the samples that descriptions ask for."""

    kind = "world"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = name_files(find_files(paths, ("*.world.json",), "descriptions of synthetic scenes"))
        self._descriptions = {file.name: read_description(file.path) for file in self.files}
        # The samples follow from the descriptions: a build must not resume after one has changed.
        self.options: dict[str, Any] = {
            name: dataclasses.asdict(description) for name, description in self._descriptions.items()
        }

    def count(self, file: InputFile) -> int:
        return self._descriptions[file.name].count

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample]:
        for number in range(start, stop):
            yield make_raw_sample(self._descriptions[file.name], number, f"{file.name}:{number}")


def read_description(path: Path) -> WorldDescription:
    """Read and validate a description file."""
    try:
        description = WorldDescription(**parse_json(read_text(path)))
    except (OSError, ValueError, TypeError) as error:
        keys = ", ".join(field.name for field in dataclasses.fields(WorldDescription))
        raise UserError(
            f"{path} is not a description of synthetic scenes ({error}): expected JSON with {keys}."
        ) from error
    if not isinstance(description.task, str) or description.task not in TASKS:
        raise UserError(f"{path}: task is {description.task!r}, expected one of {', '.join(TASKS)}.")
    for name, (low, high) in {"count": (1, 10**9), "seed": (0, 2**32), "side": (16, MAX_SIDE)}.items():
        value = getattr(description, name)
        if type(value) is not int or not low <= value <= high:
            raise UserError(f"{path}: {name} is {value!r}, expected an integer from {low} to {high}.")
    num_objects = description.num_objects
    if num_objects is not None and (type(num_objects) is not int or not 1 <= num_objects <= 3):
        raise UserError(f"{path}: num_objects is {num_objects!r}, expected 1, 2 or 3.")
    return description


def make_raw_sample(description: WorldDescription, number: int, name: str) -> RawSample:
    """Draw sample `number`; its images share texture and noise, so that they differ in the edited attribute only."""
    sample = make_sample(description.task, description.seed, number, description.held_out, description.num_objects)

    def item(content: str | Scene) -> str | bytes:
        if isinstance(content, str):
            return content
        return _png(render(content, description.side, np.random.default_rng([description.seed, number])))

    return RawSample(name, tuple(map(item, sample.items)), dict(sample.meta))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
