"""Small SVG charts for self-contained HTML pages."""

from collections.abc import Sequence
from html import escape

import numpy as np

Number = float | int | np.number
# Size of a chart and its margins, in pixels.
WIDTH = 460
HEIGHT = 180
LEFT = 46
BOTTOM = 34
TOP = 24
_MIN_INTEGER_BINS = 8  # fewer would make the bars too wide


def histogram(values: np.ndarray, label: str, marks: dict[str, int] | None = None, bins: int = 32) -> str:
    """Return a histogram; `marks` are named vertical lines, such as a maximum length."""
    values = np.asarray(values)
    if not len(values):
        return f'<p class="none">no {escape(label)}</p>'
    high = max(float(values.max()), *(marks or {}).values(), 1.0)
    one_bin_per_integer = high < bins
    if one_bin_per_integer:
        high = bins = max(int(high) + 1, _MIN_INTEGER_BINS)
    counts, edges = np.histogram(values, bins=bins, range=(0, high))
    bars = "".join(
        f'<rect x="{_x(low, high):.1f}" y="{_y(count, counts.max()):.1f}" '
        f'width="{max(_x(up, high) - _x(low, high) - 1, 1):.1f}" height="{_y(0, 1) - _y(count, counts.max()):.1f}">'
        f"<title>from {low:,.0f}, below {up:,.0f}: {count:,}</title></rect>"
        for count, low, up in zip(counts, edges, edges[1:], strict=False)
        if count
    )
    lines = "".join(
        f'<line class="mark" x1="{_x(at, high):.1f}" x2="{_x(at, high):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="mark" x="{_x(at, high) - 4:.1f}" y="{TOP - 7}" text-anchor="end">{escape(name)}</text>'
        for name, at in (marks or {}).items()
    )
    ticks = _integer_ticks(int(high)) if one_bin_per_integer else _ticks(high)
    caption = f"{label}: median {np.median(values):,.0f}, mean {values.mean():,.1f}, {len(values):,} values"
    top = f'<text x="{LEFT - 6}" y="{TOP + 9}" text-anchor="end">{counts.max():,}</text>'
    return _svg(bars + lines + ticks + top, caption)


def bars(shares: Sequence[tuple[str, float]], caption: str) -> str:
    """Return horizontal bars for fractions from 0 to 1."""
    rows = "".join(
        f'<div class="bar"><span>{escape(name)}</span><i style="width:{max(share, 0) * 100:.2f}%"></i>'
        f"<b>{share:.1%}</b></div>"
        for name, share in shares
    )
    return f'<figure><div class="bars">{rows}</div><figcaption>{escape(caption)}</figcaption></figure>'


def ranked(counts: np.ndarray, caption: str) -> str:
    """Return the usage of all codes in descending order, on a logarithmic scale."""
    used = np.sort(counts[counts > 0])[::-1].astype(float)
    if not len(used):
        return '<p class="none">no codes</p>'
    ranks = np.unique(np.geomspace(1, len(used), 200).astype(int)) - 1
    high = max(np.log10(used[0]), 0.3)
    points = " ".join(
        f"{_x(rank, len(counts)):.1f},{_y(float(np.log10(used[rank])), high):.1f}" for rank in ranks.tolist()
    )
    ticks = _ticks(len(counts))
    scale = f'<text x="{LEFT - 6}" y="{TOP + 9}" text-anchor="end">{used[0]:,.0f}</text>'
    scale += f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">1</text>'
    return _svg(f'<polyline points="{points}"/>{ticks}{scale}', caption)


def _integer_ticks(count: int) -> str:
    """Return integer labels, each centred below its bar."""
    return "".join(
        f'<text x="{_x(at + 0.5, count):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{at}</text>'
        for at in range(0, count, -(-count // _MIN_INTEGER_BINS))
    )


def _ticks(high: Number) -> str:
    return "".join(
        f'<text x="{_x(at, high):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="{anchor}">{at:,.0f}</text>'
        for at, anchor in ((0, "middle"), (high / 2, "middle"), (high, "end"))
    )


def _x(value: Number, high: Number) -> float:
    return LEFT + (WIDTH - LEFT - 14) * value / high


def _y(value: Number, high: Number) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / max(high, 1e-9)


def _svg(content: str, caption: str) -> str:
    axis = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 14}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(caption)}">{content}{axis}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
