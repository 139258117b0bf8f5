"""What every HTML page of the project is made of: one stylesheet, images inside the page, verdicts and curves."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

CSS = Path(__file__).with_name("page.css")
_THUMBNAIL = 240  # pixels of the longer side
_CURVE_WIDTH, _CURVE_HEIGHT = 300, 150  # in CSS pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 8, 22  # margins of a curve, for its axes


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How good a result is; a symbol beside the color, which not every reader can tell apart.

    Attributes:
        style: class of the stylesheet.
        symbol: the same without color.
        text: the same in words.
    """

    style: str
    symbol: str
    text: str


GOOD = Verdict("good", "✓", "right")
BAD = Verdict("bad", "✗", "wrong")


def document(title: str, body: str) -> str:
    """Return a page that loads nothing else.

    Args:
        title: of the window; text.
        body: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def image_tag(image: Image.Image, description: str = "", *, scale: int = 1) -> str:
    """Return an image inside the page, as WebP.

    Args:
        image: shown at most 240 pixels wide and high.
        description: for readers who do not see it.
        scale: enlarge so many times, so that the browser's smoothing leaves the edges of small images sharp.
    """
    shown = image.convert("RGB")
    if scale > 1:
        shown = shown.resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC)
    shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    shown.save(file, "WEBP", quality=80, method=4)
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/webp;base64,{content}">'


def curve(steps: Sequence[float], values: Sequence[float], *, y_label: str = "loss") -> str:
    """Return a line over steps with labeled axes, as SVG.

    Args:
        steps: in ascending order, at least two.
        values: one per step.
        y_label: what the values are.
    """
    low, high = min(values), max(values)
    span, last = max(high - low, 1e-9), max(steps[-1] - steps[0], 1e-9)
    right, bottom = _CURVE_WIDTH - _RIGHT, _CURVE_HEIGHT - _BOTTOM

    def x(step: float) -> float:
        return _LEFT + (step - steps[0]) / last * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / span * (bottom - _TOP)

    points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values, strict=True))
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    for value in (low, (low + high) / 2, high):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for step, anchor in ((steps[0], "start"), ((steps[0] + steps[-1]) / 2, "middle"), (steps[-1], "end")):
        parts.append(f'<text x="{x(step):.1f}" y="{_CURVE_HEIGHT - 6}" text-anchor="{anchor}">{step:.0f}</text>')
    label = f"{y_label} from {values[0]:.3g} to {values[-1]:.3g} in {steps[-1]:.0f} steps"
    return (
        f'<svg class="curve" viewBox="0 0 {_CURVE_WIDTH} {_CURVE_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'{"".join(parts)}<polyline points="{points}"/></svg>'
    )
