"""Contact sheets: many images in a grid on one page."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from seed_jax import images

GAP = 6  # pixels between two images


def contact_sheet(rows: Iterable[Sequence[Image.Image | Path | None]], *, side: int = 192) -> Image.Image:
    """Arrange images in rows of squares.

    Args:
        rows: images, or their files, which are opened one at a time; None leaves a square empty.
        side: side of a square in pixels; an image is scaled to fit and keeps its aspect ratio.
    """
    rows = [list(row) for row in rows]
    columns = max(map(len, rows), default=0)
    sheet = Image.new("RGB", (GAP + columns * (side + GAP), GAP + len(rows) * (side + GAP)), "white")
    for y, row in enumerate(rows):
        for x, source in enumerate(row):
            if source is not None:
                thumbnail = _thumbnail(source, side)
                left = GAP + x * (side + GAP) + (side - thumbnail.width) // 2
                top = GAP + y * (side + GAP) + (side - thumbnail.height) // 2
                sheet.paste(thumbnail, (left, top))
    return sheet


def _thumbnail(source: Image.Image | Path, side: int) -> Image.Image:
    if isinstance(source, Path):
        return _thumbnail(images.load(source), side)
    scale = side / max(source.size)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    return source.resize(size, Image.Resampling.LANCZOS)
