"""Generated answers as files, dictionaries and lines of text."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_jax.inference.generation.generator import Generation
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment
from seed_jax.inference.seed_llama import SeedLlama


def save_pictures(model: SeedLlama, segments: Sequence[Segment], folder: Path, name: str, seed: int = 0) -> list[Path]:
    """Draw the images among segments and write them as `name`_1.png and so on; a file appears whole or not at all."""
    paths = []
    for number, picture in enumerate(model.draw(segments, seed), 1):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}_{number}.png"
        temporary = path.with_name(f".{path.name}.tmp")
        picture.save(temporary, format="PNG")
        paths.append(temporary.replace(path))
    return paths


def described(segments: Sequence[Segment], paths: Sequence[Path] = ()) -> list[str]:
    """Return a line for each segment: text as it is, an image as its file or else its codes."""
    rest = iter(paths)
    return [line(segment, next(rest, None) if isinstance(segment, ImageSegment) else None) for segment in segments]


def line(segment: Segment, path: Path | None = None) -> str:
    if isinstance(segment, TextSegment):
        return segment.text
    found = segment.to_dict()
    what = " ".join(map(str, found.get("codes", found.get("ids")))) if path is None else str(path)
    return f"[{found['type']}] {what}"


def report_images(answers: list[Generation], boi: int) -> None:
    """Say how many of the images that were begun are whole, which only without a grammar are not all."""
    begun = sum(answer.ids.count(boi) for answer in answers)
    whole = sum(segment["type"] == "image" for answer in answers for segment in as_dict(answer)["segments"])
    rate = f"{100 * whole / begun:.1f} %" if begun else "none were begun"
    logging.info("Valid images without the grammar: %d of %d (%s).", whole, begun, rate)


def as_dict(answer: Generation, paths: list[Path] | None = None) -> dict[str, Any]:
    """Return an answer as it is written; drawn images have their file's `path`."""
    segments, rest = [segment.to_dict() for segment in answer.segments], iter(paths or [])
    for segment in segments:
        if segment["type"] == "image" and (path := next(rest, None)) is not None:
            segment["path"] = str(path)
    found = {"segments": segments, "ids": list(answer.ids), "stopped": answer.stopped}
    return found if answer.score is None else found | {"score": answer.score}
