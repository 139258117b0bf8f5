"""`seed-jax generate --batch`: a file of prompts to a file of answers; a second run resumes."""

import argparse
import codecs
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seed_jax.cli.generation_loading import (
    encode_negative_prompt,
    load_config,
    load_model,
    log_decoder_hint,
    log_unused_options,
    requires_images,
)
from seed_jax.errors import UserError
from seed_jax.files import MAX_LIST_BYTES, is_file, locked, parse_json, read_bytes, read_json, write_json
from seed_jax.inference.answers import json_line, log_image_validity, save_images, to_dict
from seed_jax.inference.chat.prompts import check_placeholders
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.sampling_params import SPEED_OPTIONS, SamplingParams
from seed_jax.inference.generation.segments import Generation
from seed_jax.inference.seed_llama import LoadConfig, SeedLlama

ANSWERS, RUN, LOCK = "answers.jsonl", "run.json", ".lock"
REMEDY = "choose another --out"
_DRAWN = re.compile(r"\d{6,}_\d+\.png")
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
    records = read_records(args.batch, defaults, args.negative_prompt)
    _log_unused_options(records)
    config = load_config(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out / LOCK, str(args.out)):
        _answer(args, config, records, defaults)


def _answer(
    args: argparse.Namespace, config: LoadConfig, records: Sequence[PromptRecord], defaults: SamplingParams
) -> None:
    answered = _resume(args, config, defaults, len(records) and records[-1].line)
    todo = [record for record in records if record.line not in answered]
    logging.info("%d of %d prompts are already answered in %s.",
                 len(records) - len(todo), len(records), args.out / ANSWERS)  # fmt: skip
    if not todo:
        return
    draws = config.decoder is not None
    if not draws and any(requires_images(record.params) for record in todo):
        log_decoder_hint(config)
    model = load_model(
        args,
        config,
        [record.params for record in todo],
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
                    name, seed = f"{record.line:06d}", record.params.seed
                    paths = save_images(model, answer.segments, args.out, name, seed, replace=True)
                result = {"line": record.line, "id": record.id, **to_dict(answer, paths)}
                file.write(json_line(result))
                file.flush()
                bar.update()
                if record.params.mode == "none":
                    without_grammar.append(answer)
    if without_grammar:
        log_image_validity(without_grammar, model.generator.vocabulary.boi)


def read_records(path: Path, defaults: SamplingParams, negative_prompt: str | None = None) -> list[PromptRecord]:
    """Read and validate all lines before a model is loaded; paths of images are relative to the file.

    Args:
        path: UTF-8 file of JSON lines, with or without a byte order mark.
        defaults: decoding options of lines that name none.
        negative_prompt: negative prompt of lines that name none.

    Raises:
        UserError: the file is missing or empty, or a line is invalid.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a file of JSON lines.")
    # Split before decoding: bytes end at CR and LF only, a text also at U+2028, U+0085 and others that JSON allows.
    lines = read_bytes(path, MAX_LIST_BYTES).removeprefix(codecs.BOM_UTF8).splitlines()
    records = [
        _parse(path, number, line, defaults, negative_prompt) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not records:
        raise UserError(f'{path} contains no prompts: expected JSON lines with a "prompt" each.')
    return records


def _parse(path: Path, number: int, line: bytes, defaults: SamplingParams, negative_prompt: str | None) -> PromptRecord:
    where = f"{path}, line {number}"
    try:
        record = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason}): convert the file to UTF-8.") from error
    except ValueError as error:
        if b"\0" in line:  # raw NUL bytes occur in UTF-16 and UTF-32, never in JSON
            raise UserError(f"{where} contains NUL bytes, as UTF-16 has: convert the file to UTF-8.") from error
        raise UserError(f"{where} is not valid JSON ({error}): correct the line.") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f'{where}: expected an object whose "prompt" is a string.')
    images, negative_prompt = record.get("images", []), record.get("negative_prompt", negative_prompt)
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise UserError(f'{where}: "images" is {images!r}, expected a list of paths.')
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        raise UserError(f'{where}: "negative_prompt" is {negative_prompt!r}, expected a string.')
    options = {name: value for name, value in record.items() if name not in RECORD_KEYS}
    if unknown := sorted(options.keys() - {field.name for field in dataclasses.fields(SamplingParams)}):
        keys = ", ".join(sorted(RECORD_KEYS))
        raise UserError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}: the keys are {keys} and decoding options "
            f"({', '.join(field.name for field in dataclasses.fields(SamplingParams))})."
        )
    given = SamplingParams.from_dict(options, where)
    try:
        check_placeholders(record["prompt"], len(images))
        params = dataclasses.replace(defaults, **{name: getattr(given, name) for name in options})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    paths = tuple(path.parent / image for image in images)
    missing = [str(image) for image in paths if not is_file(image)]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} does not exist: paths are relative to {path.parent}.")
    return PromptRecord(number, record.get("id"), record["prompt"], paths, negative_prompt, params)


def _request(record: PromptRecord, model: SeedLlama) -> Request:
    prompt = model.prompt(record.prompt, record.images)
    return Request(prompt, record.params, encode_negative_prompt(model, record.negative_prompt))


def _log_unused_options(records: Sequence[PromptRecord]) -> None:
    """Warn once, at the first line, of each set of options without effect."""
    seen = set()
    for record in records:
        without_guidance = record.negative_prompt is not None and not record.params.guided
        key = (record.params.unused, without_guidance)
        if key not in seen:
            seen.add(key)
            log_unused_options(record.params, record.negative_prompt, f"line {record.line} (and perhaps others): ")


def _resume(args: argparse.Namespace, config: LoadConfig, defaults: SamplingParams, num_lines: int) -> set[int]:
    """Return the lines that are answered, after removing an incomplete last line.

    Raises:
        UserError: the answers or images were made with another file, model or decoding options, or are damaged.
    """
    settings: dict[str, Any] = {"batch": hashlib.sha256(read_bytes(args.batch, MAX_LIST_BYTES)).hexdigest()}
    settings |= {name: None if value is None else str(value) for name, value in dataclasses.asdict(config).items()}
    settings |= json.loads(json.dumps(dataclasses.asdict(defaults)))
    settings = {name: value for name, value in settings.items() if name not in (*SPEED_OPTIONS, "draft_codes")}
    if args.negative_prompt is not None:
        settings["negative_prompt"] = args.negative_prompt
    answers, run_file = args.out / ANSWERS, args.out / RUN
    has_answers = answers.exists() and answers.stat().st_size > 0
    if not has_answers and not any(_DRAWN.fullmatch(path.name) for path in args.out.iterdir()):
        write_json(run_file, settings)
        return set()
    previous = read_json(run_file, REMEDY)
    changed = sorted(name for name in settings.keys() | previous.keys() if previous.get(name) != settings.get(name))
    if changed:
        raise UserError(f"{args.out} contains answers with other settings ({', '.join(changed)} changed): {REMEDY}.")
    if not has_answers:
        return set()
    data = answers.read_bytes()
    complete = data.rfind(b"\n") + 1
    if complete < len(data):
        os.truncate(answers, complete)
    return {_answered_line(answers, *item, num_lines) for item in enumerate(data[:complete].splitlines(), 1)}


def _answered_line(answers: Path, number: int, text: bytes, num_lines: int) -> int:
    """Return which line of the batch file a line of answers.jsonl belongs to."""
    try:
        line = parse_json(text)["line"]
    except (ValueError, TypeError, KeyError, IndexError):
        line = None
    if type(line) is not int or not 1 <= line <= num_lines:
        raise UserError(f"{answers}, line {number} is damaged: remove the line to answer it again, or {REMEDY}.")
    return line
