"""Several stages one after the other, below one workdir: what `configs/quickstart.py` runs.

Each stage is the ordinary one with a config of its own; the recipe only names their folders to each other. What is done
is marked, what was begun goes on from its checkpoint: the same command resumes at any point.
"""

import dataclasses
import datetime
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.quickstart import corpus as drawn_corpus
from seed_jax.quickstart import teacher_files
from seed_jax.quickstart.corpus import Corpus
from seed_jax.train import loop

STAGE = "recipe"
TIMES = "times.json"


@dataclasses.dataclass(frozen=True)
class Step:
    """One part of the recipe.

    Attributes:
        seconds: about how long it takes on two CPU cores; only the proportions matter once some are done.
    """

    name: str
    seconds: float | int
    run: Callable[[], Any]


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Run what is not done yet, telling how far the whole is."""
    workdir = Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    config = ml_collections.ConfigDict(config.to_dict())
    for stage in config.stages.values():
        stage.seed = config.seed
    _check_same(config, workdir)
    steps = list(_teacher_steps(config, workdir) if "reader" in config.stages else _steps(config, workdir))
    times = _times(workdir)
    for number, step in enumerate(steps, 1):
        if step.name in times:
            continue
        left = _clock(_left(steps, times))
        logging.info("== %d/%d %s: about %s left for the whole ==", number, len(steps), step.name, left)
        began = time.perf_counter()
        step.run()
        times[step.name] = time.perf_counter() - began
        write_json(workdir / TIMES, times)
    logging.info("Done in %s: %s", _clock(sum(times.values())), workdir)


def _check_same(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Refuse to go on with other settings than the workdir was begun with."""
    described, path = json.loads(config.to_json_best_effort()), workdir / "recipe.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != described:
        raise UserError(f"{workdir} was begun with other settings ({path}): use those, or choose another --workdir.")
    write_json(path, described)


def _times(workdir: Path) -> dict[str, float]:
    path = workdir / TIMES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _left(steps: list[Step], times: dict[str, float]) -> float:
    """Return the seconds that remain, going by how fast this machine was so far."""
    done = [step for step in steps if step.name in times]
    speed = sum(times[step.name] for step in done) / sum(step.seconds for step in done) if done else 1.0
    return speed * sum(step.seconds for step in steps if step.name not in times)


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _steps(config: ml_collections.ConfigDict, workdir: Path) -> Iterator[Step]:
    corpus, teacher = Corpus(workdir / "data"), Path(config.teacher or workdir / "teacher")
    stages = config.stages
    paths = {
        "qformer": {"start.init": teacher / "start", "data.vocabulary": corpus.bert_vocabulary},
        "codebook": {
            "start.init": workdir / "qformer" if config.tokenizer.contrastive else teacher / "start",
            "teacher.vision": teacher / "vision",
            "data.vocabulary": corpus.bert_vocabulary,
        },
        "decoder": {"model.init": teacher / "unclip", "source.tokenizer": workdir / "codebook"},
        "pretrain": {"data.vocabulary": corpus.vocabulary},
        "sft": {"data.vocabulary": corpus.vocabulary, "model.init": workdir / "pretrain"},
    }
    for name in ("qformer", "codebook"):
        paths[name]["data.held"] = corpus.held_pictures
    if not config.teacher:
        changes = {"codes": config.tokenizer.codes, "causal": config.tokenizer.causal}
        yield Step("teacher", 4, functools.partial(teacher_files.unpack, teacher, **changes))
    yield Step("pictures", 16, functools.partial(drawn_corpus.draw_pictures, corpus, config))
    pictures = ({"path": str(corpus.pictures), "weight": 1.0},)
    for name, seconds in (("qformer", 32), ("codebook", 86), ("decoder", 90)):
        if name != "qformer" or config.tokenizer.contrastive:
            yield Step(name, seconds, functools.partial(_train, stages[name], workdir / name, paths[name], pictures))
    if config.tokenizer.codes == CODES_PER_IMAGE:
        yield from _language_steps(config, workdir, corpus, paths)
    yield Step("evaluate", 33, functools.partial(_evaluate, config, workdir))


def _language_steps(config: ml_collections.ConfigDict, workdir: Path, corpus: Corpus, paths: dict) -> Iterator[Step]:
    tokenise = functools.partial(drawn_corpus.tokenise, corpus, config, workdir / "codebook")
    yield Step("tokenise", 65, tokenise)
    for name, seconds in (("pretrain", 85), ("sft", 145)):
        parts = corpus.parts(name)
        yield Step(name, seconds, functools.partial(_train, config.stages[name], workdir / name, paths[name], parts))


def _teacher_steps(config: ml_collections.ConfigDict, workdir: Path) -> Iterator[Step]:
    corpus, stages, teacher = Corpus(workdir / "data"), config.stages, workdir / "teacher"
    pictures = ({"path": str(corpus.pictures), "weight": 1.0},)
    yield Step("pictures", 60, functools.partial(drawn_corpus.draw_pictures, corpus, config))
    yield Step("reader", 750, functools.partial(_train, stages.reader, workdir / "reader", {}, pictures))
    source = {"source.vision": workdir / "reader"}
    for name, seconds, paths in (
        ("autoencoder", 700, source),
        ("painter", 4000, {**source, "model.init": workdir / "autoencoder"}),
    ):
        yield Step(name, seconds, functools.partial(_train, stages[name], workdir / name, paths, pictures))
    yield Step("pack", 5, functools.partial(teacher_files.pack, workdir, teacher))


def _train(
    config: ml_collections.ConfigDict, workdir: Path, paths: dict[str, Path], parts: tuple[dict[str, Any], ...]
) -> None:
    """Run an ordinary stage with its folders filled in."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.update_from_flattened_dict({key: str(path) for key, path in paths.items()})
    config.data.parts = parts
    loop.run(config, workdir)


def _evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
    from seed_jax.quickstart import (
        measure,
        report_page,  # late: training needs neither
    )

    found = measure.measure(config.evaluate, config.world.side, Path(config.teacher or workdir / "teacher"), workdir)
    write_json(workdir / "results.json", found.numbers)
    if (workdir / "sft").is_dir():
        report_page.write(workdir, found, _times(workdir))
    for name, value in found.numbers.items():
        logging.info("%-40s %.3f", name, value)
