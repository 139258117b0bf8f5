"""Measure trained models on the synthetic world with the runner of `seed-jax eval`.

All samples have held-out combinations of attributes, unless a name says `known`. The tasks are in `tasks`; their
predictions, scores and report are in `evaluation/` of the workdir. A conversation of four turns is shown beside them.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from seed_jax.data.world import Scene, make_sample, wording
from seed_jax.evaluation.fingerprint import fingerprint
from seed_jax.evaluation.report.files import write_report
from seed_jax.evaluation.runner import RunOptions, TaskRun, run_task
from seed_jax.evaluation.task import DataOptions, drawn_image_path
from seed_jax.inference.generation.segments import TextSegment
from seed_jax.recipes.pipeline import SEED, Pipeline, drawing_prompt, image_segment
from seed_jax.recipes.quickstart.config import MeasureOptions
from seed_jax.recipes.quickstart.corpus import CAPTION_QUESTION
from seed_jax.recipes.quickstart.read_captions import compare, is_correct_answer, read_caption
from seed_jax.recipes.quickstart.read_pixels import read_image
from seed_jax.recipes.quickstart.tasks import HELD_OUT, WorldTask, world_tasks
from seed_jax.train.runtime.metric_writer import read_metrics

DIRECTORY = "evaluation"  # of the workdir
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
    """One request and its answer, for the quickstart's page.

    Attributes:
        task: "describe", "answer", "rebuild", "draw", "edit" or "talk".
        inputs: images of the request.
        prompt: text of the request.
        answer: generated text.
        output: generated image.
        correct: whether everything about the answer is correct.
        codes: of the image that is reconstructed.
    """

    task: str
    inputs: tuple[Image, ...]
    prompt: str
    answer: str
    output: Image | None
    correct: bool
    codes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Results.

    Attributes:
        numbers: name -> fraction, the content of `results.json`.
        examples: for the quickstart's page.
    """

    numbers: dict[str, float]
    examples: tuple[Example, ...] = ()


def measure(options: MeasureOptions, image_size: int, teacher: Path, workdir: Path) -> Measurements:
    """Measure the models in a workdir, or what remains to be measured.

    Args:
        options: number of samples.
        image_size: height and width in pixels.
        teacher: directory whose `vision` measures the similarity of images.
        workdir: of the quickstart.
    """

    @functools.cache
    def open_pipeline() -> Pipeline:
        return Pipeline.load(workdir, image_size, options.batch, teacher / "vision")

    models = [name for name in ("codebook", "decoder", "sft", "pretrain_opt") if (workdir / name).is_dir()]
    description = {name: fingerprint(workdir / name) for name in models}
    follows_instructions = "sft" in models
    has_language_model = follows_instructions or "pretrain_opt" in models
    tasks = world_tasks(
        options, image_size, has_language_model=has_language_model, follows_instructions=follows_instructions
    )
    runs: list[TaskRun] = []
    for task in tasks:
        settings = RunOptions(options.batch)
        run = run_task(
            task, DataOptions(workdir), workdir / DIRECTORY / task.name, settings, description, open_pipeline
        )
        assert run is not None  # there is one shard
        runs.append(run)
    write_report(workdir / DIRECTORY, runs)
    numbers = training_metrics(workdir)
    examples: list[Example] = []
    for task, run in zip(tasks, runs, strict=True):
        fractions = task.fractions(run.samples, run.predictions)
        numbers |= {f"{task.name}_{name}": value for name, value in fractions.items()}
        if task.name == f"caption_{HELD_OUT}":
            codes = [prediction["codes"] for prediction in run.predictions]
            numbers["codes_seen"] = len(np.unique(codes)) / run.predictions[0]["num_codes"]
        if task.example and task.held_out:
            examples += _examples(task, run, options.shown)
    if follows_instructions:
        examples += run_conversation(open_pipeline())
    return Measurements(numbers, tuple(examples))


def training_metrics(workdir: Path) -> dict[str, float]:
    """Return the last evaluation results of the tokenizer's stages, as far as they were run."""
    numbers = {}
    for stage, names in _TRAINING_METRICS.items():
        latest = {key: value for row in read_metrics(workdir / stage) for key, value in row.items()}
        numbers |= {f"{stage}_{name}": latest[_EVALUATOR + name] for name in names if _EVALUATOR + name in latest}
    return numbers


def _examples(task: WorldTask, run: TaskRun, count: int) -> list[Example]:
    """Return the first samples of a task as examples."""
    examples = []
    for sample, prediction in list(zip(run.samples, run.predictions, strict=True))[:count]:
        drawn = drawn_image_path(run.directory, sample.id)
        output = np.asarray(PillowImage.open(drawn)) if drawn.is_file() else None
        inputs = tuple(np.asarray(image) for image in sample.load_images())
        answer = prediction.get("prediction", "")
        codes = tuple(prediction.get("codes", ()))
        correct = task.is_correct(prediction)
        examples.append(Example(task.example, inputs, sample.text, answer, output, correct, codes))
    return examples


def run_conversation(pipeline: Pipeline) -> list[Example]:
    """Generate an image, edit it, caption it and ask about it; each turn receives the codes of its image."""
    edits = (make_sample("edits", SEED, index, held_out=True) for index in range(100))
    scenes = [[item for item in sample.items if isinstance(item, Scene)] for sample in edits]
    number = next(number for number, (before, _) in enumerate(scenes) if len(before.objects) == 2)
    before, after = scenes[number]
    instruction = str(make_sample("edits", SEED, number, held_out=True).items[2])
    request = drawing_prompt(wording.captions(before)[0])
    first = pipeline.generate_codes([request])
    second = pipeline.generate_codes([[image_segment(first[0]), TextSegment(instruction)]])
    outputs = pipeline.draw(np.concatenate([first, second]), range(2))
    question = next(question for question in wording.questions(after) if question.kind == "relation")
    caption, answer = pipeline.generate_texts(
        [[image_segment(second[0]), TextSegment(text)] for text in (CAPTION_QUESTION, question.text)]
    )
    drawn = [
        compare(read_image(image), scene).all_correct for image, scene in zip(outputs, (before, after), strict=True)
    ]
    about = (outputs[1],)
    return [
        Example("talk", (), request[0].text, "", outputs[0], drawn[0]),
        Example("talk", (outputs[0],), instruction, "", outputs[1], drawn[1]),
        Example("talk", about, CAPTION_QUESTION, caption, None, compare(read_caption(caption), after).all_correct),
        Example("talk", about, question.text, answer, None, is_correct_answer("relation", answer, question.answer)),
    ]
