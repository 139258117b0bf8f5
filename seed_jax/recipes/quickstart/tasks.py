"""The quickstart's measurements as evaluation tasks on the synthetic world, for the runner of `seed-jax eval`.

Samples need no files: each is a function of its number. Images are judged by `read_pixels`, texts by `read_captions`.
Metrics of a task `NAME` are called `NAME_METRIC` in the quickstart's `results.json`, as fractions.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seed_jax.data.world import Scene, WorldSample, make_sample, render, wording
from seed_jax.evaluation.task import (
    DRAWN,
    DataOptions,
    LoadedSample,
    Prediction,
    Sample,
    Scores,
    Task,
    by_group,
)
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import TextSegment
from seed_jax.recipes.pipeline import (
    CANDIDATES,
    ONE_IMAGE,
    SEED,
    TEXT,
    WITHOUT_GRAMMAR,
    Pipeline,
    image_segment,
)
from seed_jax.recipes.quickstart.config import MeasureOptions
from seed_jax.recipes.quickstart.corpus import CAPTION_QUESTION
from seed_jax.recipes.quickstart.read_captions import Comparison, aggregate, compare, is_correct_answer, read_caption
from seed_jax.recipes.quickstart.read_pixels import read_image

_MAX_FREE_DRAWN = 200  # images generated without the grammar that are decoded; their codes may be thousands
HELD_OUT, KNOWN = "held_out", "known"


def world_tasks(
    options: MeasureOptions, image_size: int, *, has_language_model: bool, follows_instructions: bool
) -> list["WorldTask"]:
    """Return the tasks of a quickstart.

    Args:
        options: number of samples.
        image_size: height and width in pixels.
        has_language_model: whether the recipe trained one; without it, only reconstruction is measured.
        follows_instructions: whether it answers questions and edits images, too.
    """
    rebuilt = Reconstructions("rebuilt", "captions", options.drawings, image_size)
    if not has_language_model:
        return [rebuilt]
    samples, drawings = options.samples, options.drawings
    answers = [
        Answers(f"answer_{HELD_OUT}", "questions", samples, image_size),
        Answers(f"answer_{KNOWN}", "questions", samples, image_size, held_out=False),
    ]
    return [
        rebuilt,
        Captions(f"caption_{HELD_OUT}", "captions", samples, image_size),
        Captions(f"caption_{KNOWN}", "captions", samples, image_size, held_out=False),
        *(answers if follows_instructions else ()),
        Drawings("drawn", "captions", drawings, image_size),
        *([Edits("edited", "edits", drawings, image_size)] if follows_instructions else ()),
        FreeDrawings("free", "captions", options.free, image_size),
    ]


class WorldTask(Task):
    """A task on samples of the synthetic world.

    Args:
        name: of the task, and prefix of its metrics in `results.json`.
        world_task: task of the world that its samples belong to.
        count: number of samples.
        image_size: height and width in pixels.
        held_out: whether samples have combinations of attributes that training never showed.
    """

    example: str = ""  # of which section of the quickstart's page its samples are examples
    metric = "attributes"

    def __init__(self, name: str, world_task: str, count: int, image_size: int, held_out: bool = True):
        self.name, self._world_task, self._count = name, world_task, count
        self._image_size, self.held_out = image_size, held_out
        combinations = "held-out" if held_out else "trained"
        self.summary = f"{(type(self).__doc__ or '').splitlines()[0].rstrip('.')} ({combinations} combinations)"

    def read(self, options: DataOptions) -> list[Sample]:
        del options
        return [
            self.sample(index, make_sample(self._world_task, SEED, index, self.held_out))
            for index in range(self._count)
        ]

    @abc.abstractmethod
    def sample(self, index: int, world: WorldSample) -> Sample:
        """Return the sample of a number."""

    @abc.abstractmethod
    def fractions(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics from 0 to 1."""

    def is_correct(self, prediction: Prediction) -> bool:
        """Return whether everything about a prediction is correct."""
        return _comparison(prediction).all_correct

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        metrics = {name: 100 * value for name, value in self.fractions(samples, predictions).items()}
        per_sample = {"whole": [100.0 * self.is_correct(prediction) for prediction in predictions]}
        return Scores(metrics, per_sample if "whole" in metrics else {})

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        return {"request": sample.text, "answer": prediction.get("prediction", "")}

    def rendered(self, scene: Scene, index: int) -> Image.Image:
        """Render the scene of sample `index`."""
        return Image.fromarray(render(scene, self._image_size, np.random.default_rng([SEED, index])))


class Captions(WorldTask):
    """Captioning: attributes that captions state correctly."""

    example = "describe"
    sampling_params = TEXT

    def sample(self, index: int, world: WorldSample) -> Sample:
        scene = _scene(world, 0)
        return Sample(str(index), (self.rendered(scene, index),), truth={"scene": scene})

    def predict(self, batch: Sequence[LoadedSample], model: Pipeline, params: SamplingParams) -> list[Prediction]:
        codes = model.tokenize(_pixels(batch))
        prompts = [[image_segment(row), TextSegment(CAPTION_QUESTION)] for row in codes]
        texts = model.generate_texts(prompts, params)
        return [
            {
                "prediction": text,
                "codes": row.tolist(),
                "num_codes": model.tokenizer.config.num_codes,
                "counts": compare(read_caption(text), loaded.sample.truth["scene"]).counts,
            }
            for text, row, loaded in zip(texts, codes, batch, strict=True)
        ]

    def fractions(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
        return aggregate([_comparison(prediction) for prediction in predictions])


class Answers(WorldTask):
    """Visual question answering: one question about each image, by kind."""

    example = "answer"
    metric = "all"
    sampling_params = TEXT

    def sample(self, index: int, world: WorldSample) -> Sample:
        kind = world.meta["kinds"][0]
        truth = {"answer": _text(world, 2), "kind": kind}
        return Sample(str(index), (self.rendered(_scene(world, 0), index),), _text(world, 1), truth=truth, group=kind)

    def predict(self, batch: Sequence[LoadedSample], model: Pipeline, params: SamplingParams) -> list[Prediction]:
        codes = model.tokenize(_pixels(batch))
        prompts = [
            [image_segment(row), TextSegment(loaded.sample.text)] for row, loaded in zip(codes, batch, strict=True)
        ]
        return [
            {
                "prediction": text,
                "correct": is_correct_answer(loaded.sample.truth["kind"], text, loaded.sample.truth["answer"]),
            }
            for text, loaded in zip(model.generate_texts(prompts, params), batch, strict=True)
        ]

    def is_correct(self, prediction: Prediction) -> bool:
        return prediction["correct"]

    def fractions(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
        correct = [float(prediction["correct"]) for prediction in predictions]
        return {"all": float(np.mean(correct)), **by_group(samples, correct)}

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        fractions = self.fractions(samples, predictions)
        percent = {name: 100 * value for name, value in fractions.items()}
        per_sample = {"all": [100.0 * prediction["correct"] for prediction in predictions]}
        return Scores(percent, per_sample, {name: value for name, value in percent.items() if name != "all"})


class DrawnScenes(WorldTask):
    """A task whose answers are images, read by a program and compared with the scene that they should show."""

    sampling_params = ONE_IMAGE

    def compare(
        self,
        batch: Sequence[LoadedSample],
        codes: np.ndarray,
        model: Pipeline,
        *,
        is_similar: bool = False,
        candidates: int = CANDIDATES,
    ) -> list[Prediction]:
        """Draw codes and compare the images with the scenes; `is_similar` also measures their similarity."""
        outputs = model.draw(codes, [int(loaded.sample.id) for loaded in batch], candidates)
        predictions: list[Prediction] = [
            {
                "codes": row.tolist(),
                "counts": compare(read_image(output), loaded.sample.truth["scene"]).counts,
                DRAWN: Image.fromarray(output),
            }
            for row, output, loaded in zip(codes, outputs, batch, strict=True)
        ]
        if is_similar:
            true = np.stack([np.asarray(loaded.sample.truth["image"]) for loaded in batch])
            for prediction, value in zip(predictions, model.similarity(true, outputs), strict=True):
                prediction["similarity"] = float(value)
        return predictions

    def fractions(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
        numbers = aggregate([_comparison(prediction) for prediction in predictions])
        if "similarity" in predictions[0]:
            numbers["similarity"] = float(np.mean([prediction["similarity"] for prediction in predictions]))
        return numbers


class Reconstructions(DrawnScenes):
    """Reconstruction: images through their codes and back."""

    example = "rebuild"

    def sample(self, index: int, world: WorldSample) -> Sample:
        image = self.rendered(_scene(world, 0), index)
        return Sample(str(index), (image,), truth={"scene": _scene(world, 0), "image": _Pixels(image)})

    def predict(self, batch: Sequence[LoadedSample], model: Pipeline, params: SamplingParams) -> list[Prediction]:
        return self.compare(batch, model.tokenize(_pixels(batch)), model, is_similar=True)


class Drawings(DrawnScenes):
    """Text to image: images from captions."""

    example = "draw"

    def sample(self, index: int, world: WorldSample) -> Sample:
        scene = _scene(world, 0)
        image = _Pixels(self.rendered(scene, index))
        return Sample(str(index), (), wording.captions(scene)[0], truth={"scene": scene, "image": image})

    def predict(self, batch: Sequence[LoadedSample], model: Pipeline, params: SamplingParams) -> list[Prediction]:
        codes = model.generate_codes([model.drawing_prompt(loaded.sample.text) for loaded in batch], params)
        return self.compare(batch, codes, model, is_similar=True)


class Edits(DrawnScenes):
    """Image editing: images changed as instructions say."""

    example = "edit"

    def sample(self, index: int, world: WorldSample) -> Sample:
        image = self.rendered(_scene(world, 0), index)
        return Sample(str(index), (image,), _text(world, 2), truth={"scene": _scene(world, 1)})

    def predict(self, batch: Sequence[LoadedSample], model: Pipeline, params: SamplingParams) -> list[Prediction]:
        codes = model.tokenize(_pixels(batch))
        prompts = [
            [image_segment(row), TextSegment(loaded.sample.text)] for row, loaded in zip(codes, batch, strict=True)
        ]
        return self.compare(batch, model.generate_codes(prompts, params), model)


class FreeDrawings(DrawnScenes):
    """Text to image without the grammar: the fraction of well-formed images, and accuracies of the first ones.

    An answer without an image counts as a wrong image.
    """

    sampling_params = WITHOUT_GRAMMAR
    metric = "images_whole"

    def sample(self, index: int, world: WorldSample) -> Sample:
        scene = _scene(world, 0)
        return Sample(str(index), (), wording.captions(scene)[0], truth={"scene": scene})

    def predict(self, batch: Sequence[LoadedSample], model: Pipeline, params: SamplingParams) -> list[Prediction]:
        prompts = [model.drawing_prompt(loaded.sample.text) for loaded in batch]
        codes, is_well_formed = model.generate_codes_without_grammar(prompts, params)
        drawn = [loaded for loaded in batch if int(loaded.sample.id) < _MAX_FREE_DRAWN]
        predictions = self.compare(drawn, codes[: len(drawn)], model, candidates=1) if drawn else []
        predictions += [{"codes": row.tolist()} for row in codes[len(drawn) :]]
        return [
            {**prediction, "well_formed": whole} for prediction, whole in zip(predictions, is_well_formed, strict=True)
        ]

    def is_correct(self, prediction: Prediction) -> bool:
        return prediction["well_formed"]

    def fractions(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
        well_formed = float(np.mean([prediction["well_formed"] for prediction in predictions]))
        drawn = [_comparison(prediction) for prediction in predictions if "counts" in prediction]
        return {"images_whole": well_formed, **aggregate(drawn)}

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        metrics = {name: 100 * value for name, value in self.fractions(samples, predictions).items()}
        per_sample = [100.0 * prediction["well_formed"] for prediction in predictions]
        return Scores(metrics, {"images_whole": per_sample})


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """An image as part of a sample's truth; its representation, which a run's settings hash, is its content."""

    image: Image.Image

    def __repr__(self) -> str:
        return self.image.tobytes().hex()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.image, dtype)


def _comparison(prediction: Prediction) -> Comparison:
    return Comparison({name: (counts[0], counts[1]) for name, counts in prediction["counts"].items()})


def _pixels(batch: Sequence[LoadedSample]) -> list[UInt8[np.ndarray, "S S 3"]]:
    return [np.asarray(loaded.images[0]) for loaded in batch]


def _scene(sample: WorldSample, index: int) -> Scene:
    scene = sample.items[index]
    assert isinstance(scene, Scene)
    return scene


def _text(sample: WorldSample, index: int) -> str:
    text = sample.items[index]
    assert isinstance(text, str)
    return text
