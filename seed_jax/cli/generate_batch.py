"""`seed-jax generate --batch`: a file of prompts to a file of answers, which a second run goes on with."""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seed_jax.cli.generation_options import load, parts_of
from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.inference.answers import as_dict, report_images, save_pictures
from seed_jax.inference.chat.prompts import USER, Turn, build_prompt, check_placeholders, interleave
from seed_jax.inference.generation.generator import Request
from seed_jax.inference.generation.sampling_params import Settings
from seed_jax.inference.seed_llama import SeedLlama

ANSWERS, RUN = "answers.jsonl", "run.json"
OWN = {"id", "prompt", "images", "negative_prompt", "number_of_images"}  # what is in a line beside settings
HELP = (
    'JSON lines {"prompt", "images": [paths], "id", "negative_prompt", "number_of_images", any setting such as '
    f'"seed"}}; answers go to {ANSWERS} in --out'
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the file, checked."""

    number: int
    id: Any
    prompt: str
    images: tuple[Path, ...]
    negative: str | None
    settings: Settings


def run(args: argparse.Namespace, defaults: Settings) -> None:
    """Answer what has no answer yet, `batch_size` lines at a time."""
    if not args.out:
        raise UserError("--batch writes files: say with --out in which folder.")
    if args.shown or args.batch_size < 1:
        raise UserError('With --batch, pictures stand in the file ("images"), and --batch-size is at least 1.')
    lines = read_lines(args.batch, defaults)
    done = _resume(args, defaults)
    todo = [line for line in lines if line.number not in done]
    logging.info("%d of %d lines are answered in %s.", len(lines) - len(todo), len(lines), args.out / ANSWERS)
    if not todo:
        return
    widest = max((line.settings for line in todo), key=lambda one: one.beams * (1 + (one.guidance_scale != 1)))
    model = load(args, widest, prompts=min(args.batch_size, len(todo)), pictures=max(len(line.images) for line in todo))
    ungoverned = []
    with (args.out / ANSWERS).open("a", encoding="utf-8") as file, tqdm(total=len(todo), unit="answer") as bar:
        for start in range(0, len(todo), args.batch_size):
            part = todo[start : start + args.batch_size]
            answers = model.generator.generate([_request(line, model, args.style) for line in part])
            for line, answer in zip(part, answers, strict=True):
                if answer.stopped == "interrupted":
                    raise KeyboardInterrupt  # the answers before are written; this one is not one yet
                name = f"{line.number:06d}"
                paths = (
                    save_pictures(model, answer.segments, args.out, name, line.settings.seed) if args.decoder else []
                )
                found = {"line": line.number, "id": line.id, **as_dict(answer, paths)}
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
                file.flush()
                bar.update()
                ungoverned += [answer] if line.settings.mode == "none" else []
    if ungoverned:
        report_images(ungoverned, model.generator.vocabulary.boi)


def read_lines(path: Path, defaults: Settings) -> list[Line]:
    """Read and check all lines before anything is loaded; pictures are looked for beside the file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a file of JSON lines.")
    texts = path.read_text(encoding="utf-8").splitlines()
    lines = [_line(path, number, text, defaults) for number, text in enumerate(texts, 1) if text.strip()]
    if not lines:
        raise UserError(f"{path} holds no prompts.")
    return lines


def _line(path: Path, number: int, text: str, defaults: Settings) -> Line:
    where = f"{path}, line {number}"
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f'{where}: expected an object with a "prompt" of text.')
    shown, negative = record.get("images", []), record.get("negative_prompt")
    if not isinstance(shown, list) or not all(isinstance(image, str) for image in shown):
        raise UserError(f'{where}: "images" is {shown!r}, expected a list of paths.')
    if not isinstance(negative, str | None):
        raise UserError(f'{where}: "negative_prompt" is {negative!r}, expected text.')
    own = {name: value for name, value in record.items() if name not in OWN}
    own |= {"images": record["number_of_images"]} if "number_of_images" in record else {}
    given = Settings.from_dict(own, where)
    try:
        check_placeholders(record["prompt"], len(shown))
        settings = dataclasses.replace(defaults, **{name: getattr(given, name) for name in own})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    images = tuple(path.parent / image for image in shown)
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} does not exist.")
    return Line(number, record.get("id"), record["prompt"], images, negative, settings)


def _request(line: Line, model: SeedLlama, style: str) -> Request:
    words = model.generator.vocabulary
    turn = Turn(USER, interleave(line.prompt, model.encode(line.images)))
    away = None if line.negative is None else [words.bos, *words.encode(line.negative, plain=True)]
    return Request(build_prompt([turn], style, words), line.settings, away)


def _resume(args: argparse.Namespace, defaults: Settings) -> set[int]:
    """Return which lines are answered, after dropping one that was cut off; answers of another run are refused."""
    parts = {name: None if value is None else str(value) for name, value in dataclasses.asdict(parts_of(args)).items()}
    made = {"batch": hashlib.sha256(args.batch.read_bytes()).hexdigest(), "style": args.style, **parts}
    made |= json.loads(json.dumps(dataclasses.asdict(defaults)))
    args.out.mkdir(parents=True, exist_ok=True)
    answers, about = args.out / ANSWERS, args.out / RUN
    if not answers.exists() or not answers.stat().st_size:
        write_json(about, made)
        return set()
    before = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    changed = sorted(name for name in made if before.get(name) != made[name])
    if changed:
        raise UserError(
            f"{args.out} holds answers made otherwise ({', '.join(changed)} changed): choose another --out."
        )
    data = answers.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(answers, whole)
    return {json.loads(line)["line"] for line in data[:whole].splitlines()}
