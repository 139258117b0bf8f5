"""Measure composition on the synthetic world: requests of several images and turns, mostly untrained ones.

    python benchmarks/composition.py --run runs/quickstart [--samples 200]

The second paper shows image blending, in-context generation and multi-turn generation by examples; here a program reads
every drawn image and compares it with the scene that was asked for:

    edit            one image and an instruction: a trained task, for comparison
    turns           three edits in one conversation, with the whole history in the prompt
    chained         the same edits, each in a separate prompt on the codes of the image before
    blend           "the shape of image 1 in the colour of image 2" of two images with one object each
    in context      two examples of a change (image, image), then a third image to be changed in the same way

Prints a Markdown table. "Chance" compares the same drawings with the scenes of other samples; "unchanged" is what
repeating the last given image would score.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from seed_jax.data.world import Scene, render, sample_scene, wording
from seed_jax.data.world.scenes import OBJECT_ATTRIBUTES
from seed_jax.inference.chat.prompts import ASSISTANT, USER, Message, build_prompt
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment
from seed_jax.recipes.pipeline import ONE_IMAGE, Pipeline, image_segment
from seed_jax.recipes.quickstart.config import QuickstartConfig
from seed_jax.recipes.quickstart.read_captions import aggregate, compare
from seed_jax.recipes.quickstart.read_pixels import read_image
from seed_jax.train.config import load_config, parse

SEED = 2_000_003
TURNS = 3


@dataclasses.dataclass(frozen=True)
class Sample:
    """A request.

    Attributes:
        scenes: of the given images, in order.
        texts: instructions, in order.
        expected: the scene to be drawn.
    """

    scenes: tuple[Scene, ...]
    texts: tuple[str, ...]
    expected: Scene


def edits(rng: np.random.Generator, count: int) -> Sample:
    """Sample a scene and `count` changes, one after the other."""
    first = scene = sample_scene(rng, held_out=True)
    texts = []
    for _ in range(count):
        change = wording.sample_change(scene, rng)
        scene = change.scene
        texts.append(change.instruction)
    return Sample((first,), tuple(texts), scene)


def blend(rng: np.random.Generator) -> Sample:
    """Sample two objects in two images; asked for is the first one in the colour of the second."""
    while True:
        first, second = (sample_scene(rng, num_objects=1) for _ in range(2))
        (a,), (b,) = first.objects, second.objects
        if a.shape != b.shape and a.color != b.color:
            expected = first.with_object(0, a.with_attribute("colour", b.color))
            return Sample((first, second), ("Draw the shape of image 1 in the colour of image 2.",), expected)


def in_context(rng: np.random.Generator) -> Sample:
    """Sample three single objects that all change to the same colour or shape; only two of the results are given."""
    name = str(rng.choice(["colour", "shape"]))
    value = str(rng.choice(OBJECT_ATTRIBUTES[name]))
    scenes: list[Scene] = []
    while len(scenes) < 6:
        before = sample_scene(rng, num_objects=1)
        after = before.with_object(0, before.objects[0].with_attribute(name, value))
        if before.objects[0].attributes[name] != value:
            scenes += [before, after]
    return Sample(tuple(scenes[:5]), (), scenes[5])


def in_one_message(pipeline: Pipeline, samples: Sequence[Sample]) -> np.ndarray:
    """Generate codes with all images before the text."""
    codes = tokenize(pipeline, samples)
    prompts = [
        [*map(image_segment, rows), *map(TextSegment, sample.texts)]
        for rows, sample in zip(codes, samples, strict=True)
    ]
    return pipeline.generate_codes(prompts)


def in_one_conversation(pipeline: Pipeline, samples: Sequence[Sample]) -> np.ndarray:
    """Generate codes turn by turn, with all earlier turns in the prompt."""
    assert pipeline.generator is not None
    conversations = [[] for _ in samples]
    images = [[image_segment(rows[0])] for rows in tokenize(pipeline, samples)]
    codes = np.zeros((len(samples), pipeline.tokenizer.config.codes_per_image), np.int32)
    for turn in range(TURNS):
        for index, sample in enumerate(samples):
            given: list[Segment] = [*(images[index] if turn == 0 else ()), TextSegment(sample.texts[turn])]
            conversations[index].append(Message(USER, given))
        prompts = [build_prompt(messages, pipeline.style, pipeline.generator.vocabulary) for messages in conversations]
        answers = pipeline.generator.generate(prompts, ONE_IMAGE, batch_size=pipeline.batch_size)
        for index, answer in enumerate(answers):
            codes[index] = next(part.codes for part in answer.segments if isinstance(part, ImageSegment))
            conversations[index].append(Message(ASSISTANT, answer.segments))
    return codes


def one_by_one(pipeline: Pipeline, samples: Sequence[Sample]) -> np.ndarray:
    """Generate codes edit by edit, each from the codes of the image before alone."""
    codes = np.stack([rows[0] for rows in tokenize(pipeline, samples)])
    for turn in range(TURNS):
        prompts = [
            [image_segment(row), TextSegment(sample.texts[turn])] for row, sample in zip(codes, samples, strict=True)
        ]
        codes = pipeline.generate_codes(prompts)
    return codes


TASKS: dict[str, tuple[Callable[[np.random.Generator], Sample], Callable[[Pipeline, Sequence[Sample]], np.ndarray]]] = {
    "edit": (lambda rng: edits(rng, 1), in_one_message),
    "turns": (lambda rng: edits(rng, TURNS), in_one_conversation),
    "chained": (lambda rng: edits(rng, TURNS), one_by_one),
    "blend": (blend, in_one_message),
    "in context": (in_context, in_one_message),
}


def tokenize(pipeline: Pipeline, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Return the codes of each sample's images."""
    rendered = [
        render(scene, pipeline.image_size, np.random.default_rng([SEED, index, position]))
        for index, sample in enumerate(samples)
        for position, scene in enumerate(sample.scenes)
    ]
    codes = pipeline.tokenize(rendered)
    ends = np.cumsum([len(sample.scenes) for sample in samples])[:-1]
    return np.split(codes, ends)


def measure(pipeline: Pipeline, name: str, count: int) -> dict[str, float]:
    """Return the fractions of one row of the table."""
    make, generate = TASKS[name]
    samples = [make(np.random.default_rng([SEED, len(name), index])) for index in range(count)]
    drawn = pipeline.draw(generate(pipeline, samples), range(count))
    scenes = [read_image(image) for image in drawn]
    expected = [sample.expected for sample in samples]
    pairs = {
        "": (scenes, expected),
        "chance, ": (scenes, expected[1:] + expected[:1]),
        "unchanged, ": ([sample.scenes[-1 if name == "in context" else 0] for sample in samples], expected),
    }
    return {
        f"{prefix}{metric}": aggregate([compare(a, b) for a, b in zip(*pair, strict=True)])[metric]
        for prefix, pair in pairs.items()
        for metric in ("whole", "attributes", "colour", "shape")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="workdir of a quickstart")
    parser.add_argument("--samples", type=int, default=200)
    args = parser.parse_args()
    config = parse(QuickstartConfig, load_config("quickstart"))
    vision = args.run / "teacher" / "vision"
    pipeline = Pipeline.load(args.run, config.world.side, config.evaluate.batch, vision)
    columns = [f"{prefix}{name}" for prefix in ("", "chance, ", "unchanged, ") for name in ("whole", "attributes")]
    print(f"| task | {' | '.join([*columns, 'colour', 'shape'])} |\n|---|{'---:|' * (len(columns) + 2)}")
    for name in TASKS:
        numbers = measure(pipeline, name, args.samples)
        print(f"| {name} | {' | '.join(f'{100 * numbers[key]:.0f} %' for key in [*columns, 'colour', 'shape'])} |")


if __name__ == "__main__":
    main()
