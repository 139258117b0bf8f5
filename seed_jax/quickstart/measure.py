"""Measure trained models on the synthetic world with programs that read pixels and text.

All samples have held-out combinations of attributes, unless a name says `known`: caption, answer, generate, reconstruct
through the codes, edit. Images are judged by `read_pixels.read_image`, texts by `read_captions`.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from seed_jax.data.world import Scene, WorldSample, make_sample, wording
from seed_jax.inference.generation.segments import TextSegment
from seed_jax.quickstart.config import MeasureOptions
from seed_jax.quickstart.corpus import CAPTION_QUESTION
from seed_jax.quickstart.pipeline import SEED, Pipeline, Similarity, drawing_prompt, image_segment
from seed_jax.quickstart.read_captions import Comparison, aggregate, compare, is_correct_answer, read_caption
from seed_jax.quickstart.read_pixels import read_image

_MAX_FREE_DRAWN = 200  # images generated without the grammar that are decoded; their codes may be thousands
_RECALLS = ("i2t_recall@1", "i2t_recall@5", "t2i_recall@1", "t2i_recall@5")
# Stage -> metrics that it reports on the held-out images.
_TRAINING_METRICS = {
    "qformer": _RECALLS,
    "codebook": ("codes_used", "code_perplexity", *(f"code_{name}" for name in _RECALLS)),
}
_EVALUATOR = "eval/"  # prefix of these metrics

Image = UInt8[np.ndarray, "S S 3"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One request and its answer, for the report.

    Attributes:
        task: "describe", "answer", "rebuild", "draw", "edit" or "talk".
        inputs: images of the request.
        prompt: text of the request.
        answer: generated text.
        output: generated image.
        correct: whether everything about the answer is correct.
    """

    task: str
    inputs: tuple[Image, ...]
    prompt: str
    answer: str
    output: Image | None
    correct: bool


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Results.

    Attributes:
        numbers: name -> fraction, the content of `results.json`.
        examples: for the report.
    """

    numbers: dict[str, float]
    examples: tuple[Example, ...] = ()


def measure(options: MeasureOptions, image_size: int, teacher: Path, workdir: Path) -> Measurements:
    """Measure the models in a workdir.

    Args:
        options: number of samples.
        image_size: height and width in pixels.
        teacher: directory whose `vision` measures the similarity of images.
        workdir: of the quickstart.
    """
    pipeline = Pipeline.load(workdir, image_size, options.batch)
    similarity = Similarity(teacher / "vision")
    results = [measure_reconstructions(pipeline, options.drawings, similarity)]
    if pipeline.generator is not None:
        results += [
            measure_captions(pipeline, options.samples, held_out=True),
            measure_captions(pipeline, options.samples, held_out=False),
            measure_drawings(pipeline, options.drawings, similarity),
            measure_free_drawings(pipeline, options.free),
        ]
    if pipeline.follows_instructions:
        results += [
            measure_answers(pipeline, options.samples, held_out=True),
            measure_answers(pipeline, options.samples, held_out=False),
            measure_edits(pipeline, options.drawings),
            run_conversation(pipeline),
        ]
    numbers = training_metrics(workdir)
    shown: Counter[str] = Counter()
    examples = []
    for result in results:
        numbers |= result.numbers
        for example in result.examples:
            shown[example.task] += 1
            if shown[example.task] <= options.shown:
                examples.append(example)
    return Measurements(numbers, tuple(examples))


def training_metrics(workdir: Path) -> dict[str, float]:
    """Return the last evaluation results of the tokenizer's stages, as far as they were run."""
    numbers = {}
    for stage, names in _TRAINING_METRICS.items():
        path = workdir / stage / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        latest = {key: value for line in lines for key, value in json.loads(line).items()}
        numbers |= {f"{stage}_{name}": latest[_EVALUATOR + name] for name in names if _EVALUATOR + name in latest}
    return numbers


def measure_captions(pipeline: Pipeline, count: int, *, held_out: bool) -> Measurements:
    """Caption images; examples of held-out combinations only."""
    scenes, images = _captioned_images(pipeline, count, held_out)
    codes = pipeline.tokenize(images)
    texts = pipeline.generate_texts([[image_segment(row), TextSegment(CAPTION_QUESTION)] for row in codes])
    comparisons = [compare(read_caption(text), scene) for text, scene in zip(texts, scenes, strict=True)]
    numbers = _prefixed(f"caption_{_split(held_out)}", aggregate(comparisons))
    if not held_out:
        return Measurements(numbers)
    numbers["codes_seen"] = len(np.unique(codes)) / pipeline.tokenizer.config.num_codes
    examples = (
        Example("describe", (image,), "", text, None, comparison.all_correct)
        for image, text, comparison in zip(images, texts, comparisons, strict=True)
    )
    return Measurements(numbers, tuple(examples))


def measure_answers(pipeline: Pipeline, count: int, *, held_out: bool) -> Measurements:
    """Answer one question about each image; examples of held-out combinations only."""
    samples = _samples("questions", count, held_out)
    images = [pipeline.render(_scene(sample, 0), index) for index, sample in enumerate(samples)]
    questions = [_text(sample, 1) for sample in samples]
    kinds = [sample.meta["kinds"][0] for sample in samples]
    prompts = [
        [image_segment(row), TextSegment(question)]
        for row, question in zip(pipeline.tokenize(images), questions, strict=True)
    ]
    answers = pipeline.generate_texts(prompts)
    correct = [
        is_correct_answer(kind, answer, _text(sample, 2))
        for kind, answer, sample in zip(kinds, answers, samples, strict=True)
    ]
    accuracies = {"all": float(np.mean(correct))}
    for kind in sorted(set(kinds)):
        accuracies[kind] = float(np.mean([right for right, own in zip(correct, kinds, strict=True) if own == kind]))
    numbers = _prefixed(f"answer_{_split(held_out)}", accuracies)
    if not held_out:
        return Measurements(numbers)
    examples = (
        Example("answer", (image,), question, answer, None, right)
        for image, question, answer, right in zip(images, questions, answers, correct, strict=True)
    )
    return Measurements(numbers, tuple(examples))


def measure_reconstructions(pipeline: Pipeline, count: int, similarity: Similarity) -> Measurements:
    """Tokenize images and generate them from their codes."""
    scenes, images = _captioned_images(pipeline, count, held_out=True)
    outputs = pipeline.draw(pipeline.tokenize(images))
    comparisons = _compare_images(outputs, scenes)
    numbers = _prefixed("rebuilt", aggregate(comparisons))
    numbers["rebuilt_similarity"] = similarity(np.stack(images), outputs)
    examples = (
        Example("rebuild", (image,), "", "", output, comparison.all_correct)
        for image, output, comparison in zip(images, outputs, comparisons, strict=True)
    )
    return Measurements(numbers, tuple(examples))


def measure_drawings(pipeline: Pipeline, count: int, similarity: Similarity) -> Measurements:
    """Generate images from captions."""
    scenes, images = _captioned_images(pipeline, count, held_out=True)
    captions = [wording.captions(scene)[0] for scene in scenes]
    outputs = pipeline.draw(pipeline.generate_codes([pipeline.drawing_prompt(caption) for caption in captions]))
    comparisons = _compare_images(outputs, scenes)
    numbers = _prefixed("drawn", aggregate(comparisons))
    numbers["drawn_similarity"] = similarity(np.stack(images), outputs)
    examples = (
        Example("draw", (), caption, "", output, comparison.all_correct)
        for caption, output, comparison in zip(captions, outputs, comparisons, strict=True)
    )
    return Measurements(numbers, tuple(examples))


def measure_free_drawings(pipeline: Pipeline, count: int) -> Measurements:
    """Generate images without the grammar: the fraction that is well formed, and accuracies.

    An answer without an image counts as a wrong image.
    """
    scenes = [_scene(sample, 0) for sample in _samples("captions", count, held_out=True)]
    prompts = [pipeline.drawing_prompt(wording.captions(scene)[0]) for scene in scenes]
    codes, is_well_formed = pipeline.generate_codes_without_grammar(prompts)
    comparisons = _compare_images(pipeline.draw(codes[:_MAX_FREE_DRAWN]), scenes[:_MAX_FREE_DRAWN])
    return Measurements(
        {"free_images_whole": float(np.mean(is_well_formed)), **_prefixed("free", aggregate(comparisons))}
    )


def measure_edits(pipeline: Pipeline, count: int) -> Measurements:
    """Change images as instructions say."""
    samples = _samples("edits", count, held_out=True)
    images = [pipeline.render(_scene(sample, 0), index) for index, sample in enumerate(samples)]
    instructions = [_text(sample, 2) for sample in samples]
    prompts = [
        [image_segment(row), TextSegment(instruction)]
        for row, instruction in zip(pipeline.tokenize(images), instructions, strict=True)
    ]
    outputs = pipeline.draw(pipeline.generate_codes(prompts))
    comparisons = _compare_images(outputs, [_scene(sample, 1) for sample in samples])
    examples = (
        Example("edit", (image,), instruction, "", output, comparison.all_correct)
        for image, instruction, output, comparison in zip(images, instructions, outputs, comparisons, strict=True)
    )
    return Measurements(_prefixed("edited", aggregate(comparisons)), tuple(examples))


def run_conversation(pipeline: Pipeline) -> Measurements:
    """Generate an image, edit it, caption it and ask about it; each turn receives the image it is about."""
    edits = (make_sample("edits", SEED, index, held_out=True) for index in range(100))
    sample = next(sample for sample in edits if len(_scene(sample, 0).objects) == 2)
    before, after, instruction = _scene(sample, 0), _scene(sample, 1), _text(sample, 2)
    request = drawing_prompt(wording.captions(before)[0])
    first = pipeline.generate_codes([request])
    second = pipeline.generate_codes([[image_segment(first[0]), TextSegment(instruction)]])
    outputs = pipeline.draw(np.concatenate([first, second]))
    question = next(question for question in wording.questions(after) if question.kind == "relation")
    caption, answer = pipeline.generate_texts(
        [[image_segment(second[0]), TextSegment(text)] for text in (CAPTION_QUESTION, question.text)]
    )
    first_correct, second_correct = (result.all_correct for result in _compare_images(outputs, [before, after]))
    caption_correct = compare(read_caption(caption), after).all_correct
    answer_correct = is_correct_answer("relation", answer, question.answer)
    return Measurements(
        {},
        (
            Example("talk", (), request[0].text, "", outputs[0], first_correct),
            Example("talk", (), instruction, "", outputs[1], second_correct),
            Example("talk", (), CAPTION_QUESTION, caption, None, caption_correct),
            Example("talk", (), question.text, answer, None, answer_correct),
        ),
    )


def _samples(task: str, count: int, held_out: bool) -> list[WorldSample]:
    return [make_sample(task, SEED, index, held_out) for index in range(count)]


def _captioned_images(pipeline: Pipeline, count: int, held_out: bool) -> tuple[list[Scene], list[Image]]:
    scenes = [_scene(sample, 0) for sample in _samples("captions", count, held_out)]
    return scenes, [pipeline.render(scene, index) for index, scene in enumerate(scenes)]


def _scene(sample: WorldSample, index: int) -> Scene:
    scene = sample.items[index]
    assert isinstance(scene, Scene)
    return scene


def _text(sample: WorldSample, index: int) -> str:
    text = sample.items[index]
    assert isinstance(text, str)
    return text


def _compare_images(images: UInt8[np.ndarray, "N S S 3"], scenes: Sequence[Scene]) -> list[Comparison]:
    return [compare(read_image(image), scene) for image, scene in zip(images, scenes, strict=True)]


def _prefixed(prefix: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in numbers.items()}


def _split(held_out: bool) -> str:
    return "held_out" if held_out else "known"
