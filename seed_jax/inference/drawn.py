"""Images of answers as PNG files, and answers as lines for people."""

from collections.abc import Sequence
from pathlib import Path

from seed_jax.inference.seed_llama import SeedLlama
from seed_jax.inference.segments import ImageSegment, Segment, TextSegment


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
