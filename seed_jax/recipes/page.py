"""What the report pages of recipes share."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from seed_jax.evaluation.report.components import curve
from seed_jax.train.runtime.metric_writer import read_metrics


def section(title: str, text: str, content: str) -> str:
    """Return a section of a page, or "" without content.

    Args:
        title: text.
        text: what the section shows; text, may be empty.
        content: HTML.
    """
    note = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>" if content else ""


def provenance_line(provenance: Mapping[str, str]) -> str:
    """Return what tells runs apart as one line."""
    values = " · ".join(f"{escape(name)} {escape(value)}" for name, value in provenance.items())
    return f'<p class="meta">{values}</p>' if values else ""


def times_chart(times: Mapping[str, float]) -> str:
    """Return the seconds of the steps as bars."""
    total = sum(times.values())
    rows = "".join(
        f'<span>{escape(name)}</span><i style="width:{seconds / total:.1%}"></i><b>{seconds:.0f} s</b>'
        for name, seconds in times.items()
    )
    return f'<h2>Times</h2><p>{total / 60:.1f} minutes in total.</p><div class="bars">{rows}</div>'


def loss_curve(name: str, workdir: Path) -> str:
    """Return a stage's loss over steps as a figure, or "" without at least two points.

    Args:
        name: of the stage.
        workdir: of the stage.
    """
    rows = [row for row in read_metrics(workdir) if row.get("loss") is not None]
    if len(rows) < 2:
        return ""
    steps, losses = ([float(row[key]) for row in rows] for key in ("step", "loss"))
    caption = f"<strong>{escape(name)}</strong>: {losses[0]:.3g} to {losses[-1]:.3g} in {steps[-1]:.0f} steps"
    return f'<figure class="chart">{curve(steps, losses)}<figcaption>{caption}</figcaption></figure>'
