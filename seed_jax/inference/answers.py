"""Generated answers as files, JSON objects and lines of text."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_jax.files import atomic_path, reserve_numbered
from seed_jax.inference.generation.segments import Generation, ImageSegment, Segment, TextSegment
from seed_jax.inference.seed_llama import SeedLlama


def save_images(
    model: SeedLlama, segments: Sequence[Segment], folder: Path, name: str, seed: int = 0, *, replace: bool = False
) -> list[Path]:
    """Draw the images among segments and write them to `<name>_1.png`, `<name>_2.png`, ... atomically.

    Args:
        model: the models.
        segments: segments of an answer.
        folder: directory of the files.
        name: beginning of the files' names.
        seed: seed of the first image.
        replace: replace existing files, which an interrupted run of the same answer left; by default the numbers
            continue after those of the existing files.

    Returns:
        The paths of the files, in order.
    """
    images = model.draw(segments, seed)
    if not images:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(images, 1):
        path = folder / f"{name}_{number}.png" if replace else reserve_numbered(folder, name, ".png")
        try:
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")
        except BaseException:
            if not replace:
                path.unlink(missing_ok=True)  # the reserved, empty file
            raise
        paths.append(path)
    return paths


def format_segments(segments: Sequence[Segment], paths: Sequence[Path] = ()) -> list[str]:
    """Return one line per segment; `paths` are the files of the images, in order."""
    rest = iter(paths)
    return [
        format_segment(segment, next(rest, None) if isinstance(segment, ImageSegment) else None) for segment in segments
    ]


def format_segment(segment: Segment, path: Path | None = None) -> str:
    """Return text as it is, and an image as its file, or as its codes if there is no file."""
    if isinstance(segment, TextSegment):
        return segment.text
    numbers = segment.codes if isinstance(segment, ImageSegment) else segment.ids
    return f"[{segment.to_dict()['type']}] {' '.join(map(str, numbers)) if path is None else path}"


def log_image_validity(answers: Sequence[Generation], boi: int) -> None:
    """Log how many of the images that were begun are complete; without the grammar not all are.

    Args:
        answers: answers generated without the grammar.
        boi: id of `<img>`.
    """
    begun = sum(answer.ids.count(boi) for answer in answers)
    complete = sum(isinstance(segment, ImageSegment) for answer in answers for segment in answer.segments)
    rate = f"{100 * complete / begun:.1f} %" if begun else "none were begun"
    logging.info("Valid images without the grammar: %d of %d (%s).", complete, begun, rate)


def json_line(value: dict[str, Any]) -> str:
    """Return an object as a line of JSON; other characters than ASCII are escaped only where UTF-8 lacks one."""
    line = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair, such as the id "\ud83d"
        return json.dumps(value) + "\n"
    return line


def to_dict(answer: Generation, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """Return an answer as a JSON object; images that were drawn have the `path` of their file."""
    segments, rest = [segment.to_dict() for segment in answer.segments], iter(paths)
    for segment in segments:
        if segment["type"] == "image" and (path := next(rest, None)) is not None:
            segment["path"] = str(path)
    result = {"segments": segments, "ids": list(answer.ids), "finish_reason": answer.finish_reason}
    return result if answer.score is None else result | {"score": answer.score}
