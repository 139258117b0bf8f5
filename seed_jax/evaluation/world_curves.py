"""What a page shows of numbers and pixels without anything being fetched: curves as SVG, pictures as data."""

import base64
import html
import io
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_ENLARGED = 3  # so that a browser's smoothing leaves edges sharp


def picture_data(picture: UInt8[np.ndarray, "S S 3"]) -> str:
    """Return a picture as a `data:` address."""
    file, image = io.BytesIO(), Image.fromarray(picture)
    image.resize([_ENLARGED * side for side in image.size], Image.Resampling.BICUBIC).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def curve(name: str, path: Path, width: int = 256, height: int = 120) -> str:
    """Return a stage's loss as a line; nothing for what is no stage."""
    if not path.is_file():
        return ""
    rows = [
        row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if row.get("loss") is not None
    ]
    if len(rows) < 2:
        return ""
    steps, losses = (np.array([row[key] for row in rows], float) for key in ("step", "loss"))
    x = (steps - steps[0]) / max(1.0, np.ptp(steps)) * (width - 12) + 6
    y = height - 8 - (losses - losses.min()) / max(1e-9, np.ptp(losses)) * (height - 16)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    line = f'<polyline points="{points}" fill="none" stroke="#2f6fed" stroke-width="2" stroke-linejoin="round"/>'
    title = f"<strong>{html.escape(name)}</strong>"
    caption = f"{title}: {losses[0]:.3g} to {losses[-1]:.3g} in {steps[-1]:.0f} steps"
    drawing = f'<svg width="{width}" height="{height}">{line}</svg>'
    return f"<figure class=panel>{drawing}<figcaption>{caption}</figcaption></figure>"
