"""Samples of the drawn world, made from a short description such as `{"task": "captions", "count": 2000, "seed": 1}`.

`task` is one of captions (tasks pretrain.image_text_pair, sft.qa), questions (sft.conversation), edits (sft.edit,
pretrain.edit), differences (sft.difference), stories (pretrain.interleaved, sft.interleaved); `side` is that of the
pictures in pixels (default 64); with `"held": true` every sample shows combinations that all others lack; `"things": 3`
is how many each scene has, else one to three. Any number, always the same.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax.data.sources.units import InputFile, Raw, found, named
from seed_jax.data.world import TASKS, Scene, make_sample, paint
from seed_jax.errors import UserError

SIDE = 64


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a file asks for."""

    task: str
    count: int
    seed: int = 0
    held: bool = False
    side: int = SIDE
    things: int | None = None


class WorldSource:
    """Draw what descriptions ask for; a work unit is a sample."""

    kind = "world"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = named(found(paths, ("*.world.json",), "descriptions of drawn samples"))
        self._recipes = {file.name: read_recipe(file.path) for file in self.files}
        # What is drawn follows from the descriptions, so a build must not go on after one has changed.
        self.options: dict[str, Any] = {name: dataclasses.asdict(each) for name, each in self._recipes.items()}

    def count(self, file: InputFile) -> int:
        return self._recipes[file.name].count

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw]:
        recipe = self._recipes[file.name]
        for number in range(start, stop):
            yield draw_unit(recipe, number, f"{file.name}:{number}")


def read_recipe(path: Path) -> Recipe:
    """Read a description; UserError names what is wrong with it."""
    try:
        recipe = Recipe(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        keys = ", ".join(field.name for field in dataclasses.fields(Recipe))
        raise UserError(f"{path} does not describe drawn samples ({error}): expected JSON with {keys}.") from error
    if recipe.task not in TASKS:
        raise UserError(f"{path}: task is {recipe.task!r}, expected one of {', '.join(TASKS)}.")
    numbers = {"count": (recipe.count, 1), "seed": (recipe.seed, 0), "side": (recipe.side, 16)}
    for name, (value, least) in numbers.items():
        if type(value) is not int or value < least:
            raise UserError(f"{path}: {name} is {value!r}, expected a whole number of at least {least}.")
    if recipe.things is not None and (type(recipe.things) is not int or not 1 <= recipe.things <= 3):
        raise UserError(f"{path}: things is {recipe.things!r}, expected 1, 2 or 3.")
    return recipe


def draw_unit(recipe: Recipe, number: int, name: str) -> Raw:
    """Draw one sample; the pictures of one sample share texture and noise, so that only what was changed changes."""
    sample = make_sample(recipe.task, recipe.seed, number, recipe.held, recipe.things)

    def item(part: str | Scene) -> str | bytes:
        if isinstance(part, str):
            return part
        return _png(paint(part, recipe.side, np.random.default_rng([recipe.seed, number])))

    return Raw(name, tuple(map(item, sample.items)), dict(sample.meta))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
