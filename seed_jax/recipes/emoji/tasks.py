"""Names of images, and images of names, as evaluation tasks for the runner of `seed-jax eval`.

Generated images are judged by the vision tower that the recipe trained: the right symbol's image by the studio that no
training saw must be the nearest among that studio's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from seed_jax import images
from seed_jax.evaluation.task import DRAWN, DataOptions, LoadedSample, Prediction, Sample, Scores, Task, by_group
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import TextSegment
from seed_jax.recipes.emoji.corpus import QUESTION
from seed_jax.recipes.emoji.packages import EmojiSet, Symbol
from seed_jax.recipes.emoji.pixel_codes import apply_in_batches
from seed_jax.recipes.pipeline import ONE_IMAGE, TEXT, Pipeline, image_segment

CANDIDATES = 100  # symbols of the easier choice


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Recognizes the symbol in an image.

    Attributes:
        symbols: of one group.
        vectors: unit vectors of their images by the test studio.
    """

    symbols: Sequence[Symbol]
    vectors: Float[np.ndarray, "N E"]

    def nearest(self, vectors: Float[np.ndarray, "M E"], among: np.ndarray | None = None) -> list[int]:
        """Return the index of the symbol nearest to each image, or among the indices of each row of `among`."""
        similarities = vectors @ self.vectors.T
        if among is None:
            return similarities.argmax(1).tolist()
        best = np.take_along_axis(similarities, among, axis=1).argmax(1)
        return np.take_along_axis(among, best[:, None], axis=1)[:, 0].tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """What the tasks predict with.

    Attributes:
        pipeline: the trained models.
        judges: group -> judge of drawings.
    """

    pipeline: Pipeline
    judges: dict[str, Judge]


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """Drawings.

    Attributes:
        images: RGB.
        vectors: their unit vectors under the vision tower.
    """

    images: UInt8[np.ndarray, "N S S 3"]
    vectors: Float[np.ndarray, "N E"]


class EmojiTask(Task):
    """A task on the symbols of a group.

    Args:
        name: of the task.
        group: of the symbols.
        emoji: the images.
        studio: whose images are read, or shown beside drawings.
        count: number of samples, evenly spaced; 0 takes all.
    """

    wording: str  # of the summary, with the names of studios and group left open
    style: str = ""  # studio in whose style images are asked for, in tasks that do

    def __init__(self, name: str, group: str, emoji: EmojiSet, studio: str, count: int):
        self.name, self.group, self.emoji, self.studio = name, group, emoji, studio
        names = {"studio": studio.capitalize(), "style": self.style.capitalize(), "group": group.replace("_", " ")}
        self.summary = self.wording.format(**names)
        symbols = emoji.of_group(group)
        chosen = range(len(symbols))
        if 0 < count < len(symbols):
            chosen = np.linspace(0, len(symbols) - 1, count).round().astype(int).tolist()
        self._chosen = [(int(index), symbols[index]) for index in chosen]

    def read(self, options: DataOptions) -> list[Sample]:
        del options
        return [
            Sample(
                str(index),
                (self.emoji.image(self.studio, symbol),),
                symbol.name,
                truth={"name": symbol.name, "category": symbol.category, "index": index},
                group=symbol.category,
            )
            for index, symbol in self._chosen
        ]


class Names(EmojiTask):
    """The name of an image, in the language model's words."""

    wording = "Names of {studio}'s images, read from their 32 codes ({group})."
    metric = "exact"
    sampling_params = TEXT

    def predict(self, batch: Sequence[LoadedSample], model: Models, params: SamplingParams) -> list[Prediction]:
        pipeline = model.pipeline
        codes = pipeline.tokenizer.encode([loaded.images[0] for loaded in batch])
        prompts = [[image_segment(row), TextSegment(QUESTION)] for row in codes]
        texts = pipeline.generate_texts(prompts, params)
        return [{"prediction": text.strip().rstrip(".").lower()} for text in texts]

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        category_of = self.emoji.category_of
        texts = [prediction["prediction"] for prediction in predictions]
        exact = [100.0 * (text == sample.truth["name"]) for text, sample in zip(texts, samples, strict=True)]
        category = [
            100.0 * (category_of.get(text) == sample.truth["category"])
            for text, sample in zip(texts, samples, strict=True)
        ]
        known = [100.0 * (text in category_of) for text in texts]
        per_sample = {"exact": exact, "category": category, "known_name": known}
        return Scores(_means(per_sample), per_sample, by_group(samples, exact))

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        return {"name": sample.text, "answer": prediction["prediction"]}


class Drawings(EmojiTask):
    """The image of a name, drawn from the 32 codes that the language model generates."""

    wording = (
        "Images of names ({group}): left the image by {studio}, right the drawing. Right if {studio}'s image of the "
        "name is the nearest of all, or of 100."
    )
    metric = "right_of_all"
    sampling_params = ONE_IMAGE
    draws = True

    def predict(self, batch: Sequence[LoadedSample], model: Models, params: SamplingParams) -> list[Prediction]:
        pipeline = model.pipeline
        codes = pipeline.generate_codes([pipeline.drawing_prompt(loaded.sample.text) for loaded in batch], params)
        return self.judge(batch, codes, self.draw(batch, codes, model), model)

    def draw(self, batch: Sequence[LoadedSample], codes: np.ndarray, model: Models) -> Drawn:
        """Draw codes, each sample's with a seed of its own."""
        outputs = model.pipeline.draw(codes, [loaded.sample.truth["index"] for loaded in batch])
        return Drawn(outputs, embed_images(model.pipeline, list(outputs)))

    def judge(self, batch: Sequence[LoadedSample], codes: np.ndarray, drawn: Drawn, model: Models) -> list[Prediction]:
        """Say which symbols the drawings of codes show."""
        judge, indices = model.judges[self.group], [loaded.sample.truth["index"] for loaded in batch]
        among = np.stack([_candidates(index, len(judge.symbols)) for index in indices])
        return [
            {"codes": row.tolist(), "nearest": nearest, "nearest_of_100": of_100, DRAWN: Image.fromarray(output)}
            for row, nearest, of_100, output in zip(
                codes, judge.nearest(drawn.vectors), judge.nearest(drawn.vectors, among), drawn.images, strict=True
            )
        ]

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        keys = {"right_of_all": "nearest", "right_of_100": "nearest_of_100"}
        per_sample = {
            name: [
                100.0 * (prediction[key] == sample.truth["index"])
                for prediction, sample in zip(predictions, samples, strict=True)
            ]
            for name, key in keys.items()
        }
        symbols = self.emoji.of_group(self.group)
        per_sample["category"] = [
            100.0 * (symbols[prediction["nearest"]].category == sample.truth["category"])
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        return Scores(_means(per_sample), per_sample, by_group(samples, per_sample["right_of_all"]))

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        nearest = self.emoji.of_group(self.group)[prediction["nearest"]].name
        return {"name": sample.text, "nearest": nearest}


class Reconstructions(Drawings):
    """An image through its 32 codes and back, judged as drawings are."""

    wording = (
        "{studio}'s images through 32 codes and back ({group}): left the image, right its reconstruction. Right if the "
        "image itself is the nearest of all, or of 100."
    )

    def predict(self, batch: Sequence[LoadedSample], model: Models, params: SamplingParams) -> list[Prediction]:
        codes = model.pipeline.tokenizer.encode([loaded.images[0] for loaded in batch])
        return self.judge(batch, codes, self.draw(batch, codes, model), model)


class Restyled(Drawings):
    """An image redrawn as another studio draws it, after two examples in the prompt: training shows no such prompt.

    Args:
        arguments: as of `EmojiTask`.
        style: the other studio.
    """

    wording = (
        "{studio}'s images ({group}) to be redrawn in the style of {style}, after two examples: left the image, right "
        "the drawing. Right if the drawing is nearer to {style}'s image of the symbol than to {studio}'s."
    )
    metric = "style"

    def __init__(self, *arguments: Any, style: str):
        self.style = style
        super().__init__(*arguments)

    def predict(self, batch: Sequence[LoadedSample], model: Models, params: SamplingParams) -> list[Prediction]:
        symbols, pipeline = self.emoji.of_group(self.group), model.pipeline
        given, wanted = [], []
        for loaded in batch:
            index = loaded.sample.truth["index"]
            shown = [symbols[(index + offset) % len(symbols)] for offset in (1, 2)]
            studios = (self.studio, self.style)
            examples = [self.emoji.image(studio, symbol) for symbol in shown for studio in studios]
            given.append([*examples, self.emoji.image(self.studio, symbols[index])])
            wanted.append(self.emoji.image(self.style, symbols[index]))
        codes = np.stack([pipeline.tokenizer.encode(images) for images in given])
        answers = pipeline.generate_codes([[image_segment(row) for row in rows] for rows in codes], params)
        drawn = {
            "style": self.draw(batch, answers, model),
            # What repeating the image scores, and what the wanted image does through its codes and back.
            "style_unchanged": self.draw(batch, codes[:, -1], model),
            "style_wanted": self.draw(batch, pipeline.tokenizer.encode(wanted), model),
        }
        predictions = self.judge(batch, answers, drawn["style"], model)
        change = embed_images(pipeline, wanted) - embed_images(pipeline, [images[-1] for images in given])
        for name, drawings in drawn.items():
            for prediction, agreement in zip(predictions, (drawings.vectors * change).sum(-1), strict=True):
                prediction[name] = bool(agreement > 0)
        return predictions

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        scores = super().score(samples, predictions)
        names = ("style", "style_unchanged", "style_wanted")
        styles = {name: [100.0 * prediction[name] for prediction in predictions] for name in names}
        per_sample = {**styles, **scores.per_sample}
        return Scores(_means(per_sample), per_sample, by_group(samples, styles["style"]))


def embed_images(pipeline: Pipeline, inputs: Sequence[images.ImageInput]) -> Float[np.ndarray, "N E"]:
    """Return unit vectors of images under the vision tower, batch by batch."""
    size = pipeline.tokenizer.config.image_size
    pixels = np.stack([images.resize(images.load(image), size) for image in inputs])
    return apply_in_batches(pipeline.similarity.unit_vectors, pixels, pipeline.batch_size)


def _candidates(index: int, count: int) -> np.ndarray:
    """Return the indices of a symbol and of others, drawn by its number: 100 in all, or as many as there are."""
    others = np.delete(np.arange(count), index)
    chosen = np.random.default_rng(index).permutation(others)[: CANDIDATES - 1]
    # Padded with the last one where there are fewer, so that all rows are equally long.
    row = np.concatenate([[index], chosen])
    return np.resize(row, min(CANDIDATES, count))


def _means(per_sample: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in per_sample.items()}


def make_tasks(
    emoji: EmojiSet, studio: str, groups: Sequence[str], names: int, drawings: int, style: str
) -> list[EmojiTask]:
    """Return the tasks of a recipe: naming, drawing, reconstructing and restyling the symbols of each group."""
    kinds: tuple[tuple[str, type[EmojiTask], int], ...] = (
        ("names", Names, names), ("drawings", Drawings, drawings), ("reconstructions", Reconstructions, drawings),
    )  # fmt: skip
    tasks = [make(f"{kind}_{group}", group, emoji, studio, count) for kind, make, count in kinds for group in groups]
    return [*tasks, *(Restyled(f"restyled_{group}", group, emoji, studio, drawings, style=style) for group in groups)]
