"""`seed-jax generate --batch`: a file of prompts to a file of answers; a second run resumes."""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seed_jax.cli.generation_loading import load_config, load_model, log_decoder_hint, requires_images
from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.inference.answers import log_image_validity, save_images, to_dict
from seed_jax.inference.chat.prompts import USER, Message, build_prompt, check_placeholders, interleave
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation
from seed_jax.inference.seed_llama import LoadConfig, SeedLlama

ANSWERS, RUN = "answers.jsonl", "run.json"
RECORD_KEYS = {"id", "prompt", "images", "negative_prompt"}  # all other keys of a line are decoding options


@dataclasses.dataclass(frozen=True)
class PromptRecord:
    """A validated line of the batch file."""

    line: int
    id: Any
    prompt: str
    images: tuple[Path, ...]
    negative_prompt: str | None
    params: SamplingParams


def run(args: argparse.Namespace, defaults: SamplingParams) -> None:
    """Answer the prompts that have no answer yet, `args.batch_size` at a time."""
    if not args.out:
        raise UserError("--batch writes files: give their directory with --out.")
    if args.visual_inputs:
        raise UserError('With --batch, images are given in the file ("images"): remove --image and --video.')
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}, expected at least 1.")
    records = read_records(args.batch, defaults)
    config = load_config(args)
    answered = _resume(args, config, defaults)
    todo = [record for record in records if record.line not in answered]
    logging.info("%d of %d prompts are already answered in %s.",
                 len(records) - len(todo), len(records), args.out / ANSWERS)  # fmt: skip
    if not todo:
        return
    draws = config.decoder is not None
    if not draws and any(requires_images(record.params) for record in todo):
        log_decoder_hint(config)
    most_expensive = max((record.params for record in todo), key=lambda params: params.beams * (1 + params.guided))
    model = load_model(
        args,
        config,
        most_expensive,
        prompts=min(args.batch_size, len(todo)),
        num_images=max(len(record.images) for record in todo),
        draws=draws,
    )
    without_grammar: list[Generation] = []
    with (args.out / ANSWERS).open("a", encoding="utf-8") as file, tqdm(total=len(todo), unit="answer") as bar:
        for start in range(0, len(todo), args.batch_size):
            batch = todo[start : start + args.batch_size]
            answers = model.generator.generate([_request(record, model) for record in batch])
            for record, answer in zip(batch, answers, strict=True):
                if answer.finish_reason == "interrupted":
                    raise KeyboardInterrupt  # complete answers are written; this one is not complete
                paths = []
                if draws:
                    paths = save_images(model, answer.segments, args.out, f"{record.line:06d}", record.params.seed)
                result = {"line": record.line, "id": record.id, **to_dict(answer, paths)}
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
                file.flush()
                bar.update()
                if record.params.mode == "none":
                    without_grammar.append(answer)
    if without_grammar:
        log_image_validity(without_grammar, model.generator.vocabulary.boi)


def read_records(path: Path, defaults: SamplingParams) -> list[PromptRecord]:
    """Read and validate all lines before a model is loaded; paths of images are relative to the file.

    Raises:
        UserError: the file is missing or empty, or a line is invalid.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a file of JSON lines.")
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [_parse(path, number, text, defaults) for number, text in enumerate(lines, 1) if text.strip()]
    if not records:
        raise UserError(f'{path} contains no prompts: expected JSON lines with a "prompt" each.')
    return records


def _parse(path: Path, number: int, text: str, defaults: SamplingParams) -> PromptRecord:
    where = f"{path}, line {number}"
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f'{where}: expected an object whose "prompt" is a string.')
    images, negative_prompt = record.get("images", []), record.get("negative_prompt")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise UserError(f'{where}: "images" is {images!r}, expected a list of paths.')
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        raise UserError(f'{where}: "negative_prompt" is {negative_prompt!r}, expected a string.')
    options = {name: value for name, value in record.items() if name not in RECORD_KEYS}
    given = SamplingParams.from_dict(options, where)
    try:
        check_placeholders(record["prompt"], len(images))
        params = dataclasses.replace(defaults, **{name: getattr(given, name) for name in options})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    paths = tuple(path.parent / image for image in images)
    missing = [str(image) for image in paths if not image.is_file()]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} does not exist: paths are relative to {path.parent}.")
    return PromptRecord(number, record.get("id"), record["prompt"], paths, negative_prompt, params)


def _request(record: PromptRecord, model: SeedLlama) -> Request:
    vocabulary = model.generator.vocabulary
    message = Message(USER, interleave(record.prompt, model.encode(record.images)))
    negative = None
    if record.negative_prompt is not None:
        negative = [vocabulary.bos, *vocabulary.encode(record.negative_prompt, plain=True)]
    return Request(build_prompt([message], model.style, vocabulary), record.params, negative)


def _resume(args: argparse.Namespace, config: LoadConfig, defaults: SamplingParams) -> set[int]:
    """Return the lines that are answered, after removing an incomplete last line.

    Raises:
        UserError: the answers were made with another file, model or decoding options.
    """
    settings: dict[str, Any] = {"batch": hashlib.sha256(args.batch.read_bytes()).hexdigest()}
    settings |= {name: None if value is None else str(value) for name, value in dataclasses.asdict(config).items()}
    settings |= json.loads(json.dumps(dataclasses.asdict(defaults)))
    args.out.mkdir(parents=True, exist_ok=True)
    answers, run_file = args.out / ANSWERS, args.out / RUN
    if not answers.exists() or not answers.stat().st_size:
        write_json(run_file, settings)
        return set()
    previous = json.loads(run_file.read_text(encoding="utf-8")) if run_file.is_file() else {}
    changed = sorted(name for name in settings if previous.get(name) != settings[name])
    if changed:
        raise UserError(
            f"{args.out} contains answers with other settings ({', '.join(changed)} changed): choose another --out."
        )
    data = answers.read_bytes()
    complete = data.rfind(b"\n") + 1
    if complete < len(data):
        os.truncate(answers, complete)
    return {json.loads(line)["line"] for line in data[:complete].splitlines()}
