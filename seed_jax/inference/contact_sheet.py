"""Many pictures on one page."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

GAP = 6


def contact_sheet(rows: Iterable[Sequence[Image.Image | Path | None]], *, side: int = 192) -> Image.Image:
    """Lay pictures out in rows of squares; None leaves a square empty.

    Args:
        rows: pictures or their files, which are opened one at a time.
        side: pixels of a square; a picture is scaled to fit and keeps its shape.
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
        with Image.open(source) as picture:
            return _thumbnail(picture.convert("RGB"), side)
    scale = side / max(source.size)
    size = tuple(max(1, round(length * scale)) for length in source.size)
    return source.resize(size, Image.Resampling.LANCZOS)
