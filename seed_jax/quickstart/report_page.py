"""The report of a quickstart: results, examples and training curves in one HTML file that loads nothing else."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seed_jax.files import write_text
from seed_jax.quickstart.measure import Example, Measurements
from seed_jax.train.runtime.metric_writer import read_metrics

PAGE = "report.html"
# Result -> title and goal.
GOALS = {
    "caption_held_out_attributes": ("Captions: correct attributes", 0.95),
    "answer_held_out_all": ("Questions: correct answers", 0.95),
    "rebuilt_attributes": ("Images through 32 codes and back: correct attributes", 0.90),
    "drawn_attributes": ("Images from captions: correct attributes", 0.90),
    "edited_attributes": ("Edited images: correct attributes", 0.80),
}
# Result -> the fraction of samples without any mistake, a stricter measure.
_WHOLE = {
    "caption_held_out_attributes": "caption_held_out_whole",
    "rebuilt_attributes": "rebuilt_whole",
    "drawn_attributes": "drawn_whole",
    "edited_attributes": "edited_whole",
}
_INSTRUCTED = ("answer", "edited")  # tasks that SEED-1's language model is not trained for
# Task of the examples -> title and description.
_SECTIONS = {
    "rebuild": ("Reconstruction", "Left an image, right what is generated from its 32 codes. The texture may change."),
    "draw": ("Text to image", "The language model generates 32 codes, the decoder generates the image."),
    "describe": ("Captioning", "The language model reads the 32 codes of an image."),
    "edit": ("Image editing", "Left the input, right the output for the instruction."),
    "answer": ("Visual question answering", "One question about one image."),
}
# Prefix of results -> title.
_GROUPS = {
    "caption_held_out": "Captions, held-out combinations",
    "caption_known": "Captions, trained combinations",
    "answer_held_out": "Answers, held-out combinations",
    "answer_known": "Answers, trained combinations",
    "rebuilt": "Images through 32 codes and back",
    "drawn": "Images from captions",
    "edited": "Edited images",
    "free": "Images from captions, without the grammar that enforces 32 codes",
    "qformer": "Stage I: retrieval among 200 held-out images",
    "codebook": "Stage II: codebook usage, and retrieval through codes",
}
_STYLE = """
:root{--ink:#1c2733;--soft:#64748b;--line:#e3e8ef;--good:#16a06a;--bad:#d2453d;--blue:#2f6fed}
*{box-sizing:border-box}body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);background:#f5f7fa;margin:0}
main{max-width:1120px;margin:0 auto;padding:2.2rem 1.2rem 4rem}h1{font-size:2rem;margin:0 0 .3rem}
h2{font-size:1.3rem;margin:2.6rem 0 .2rem}p{margin:.2rem 0 1rem;color:var(--soft);max-width:46rem}
.panel{background:#fff;border:1px solid var(--line);border-radius:12px;padding:1rem 1.2rem}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .8rem .35rem 0;text-align:left}
th{color:var(--soft);font-weight:500}tr+tr td{border-top:1px solid var(--line)}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;padding-right:.4rem}
.bar{background:var(--line);border-radius:4px;height:10px;min-width:180px;position:relative}
.bar i{display:block;height:100%;border-radius:4px;background:var(--good)}.bar i.low{background:var(--bad)}
.bar b{position:absolute;top:-3px;height:16px;width:2px;background:var(--ink)}
.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(215px,1fr))}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:.7rem;border-bottom:3px solid var(--good)}
.card.wrong{border-bottom-color:var(--bad)}.card .pair{display:flex;gap:6px;margin-bottom:.4rem}
img{width:96px;height:96px;border-radius:6px}.prompt{color:var(--soft)}
.talk{max-width:640px}.talk div{display:flex;margin:.5rem 0}.talk span{padding:.5rem .9rem;border-radius:14px}
.talk .you{justify-content:flex-end}.talk .you span{background:var(--blue);color:#fff}.talk .it span{background:#eef1f6}
.talk img{width:144px;height:144px;display:block}
.curves{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}figcaption{color:var(--soft);font-size:13px}
.groups{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(330px,1fr))}
h3{font-size:1rem;margin:0 0 .3rem}
"""
_SCALE = 3  # of images, so that the browser's smoothing leaves edges sharp
_CURVE_WIDTH, _CURVE_HEIGHT = 256, 120  # in CSS pixels


def write_report(workdir: Path, results: Measurements, times: dict[str, float]) -> Path:
    """Write `report.html`.

    Args:
        workdir: of the quickstart; its stages' `metrics.jsonl` give the curves.
        results: what was measured.
        times: step -> seconds.

    Returns:
        The path of the page.
    """
    numbers = results.numbers
    parts = [
        "<h1>SEED in miniature</h1>",
        "<p>A synthetic world, images as 32 discrete codes, and a small language model that reads and generates them. "
        "All samples show combinations of size, color and shape that no training image shows. Programs that read "
        "pixels and text judge the answers; wrong ones have a red edge.</p>",
        _goals_table(numbers),
        _conversation([example for example in results.examples if example.task == "talk"]),
        *[_section(task, title, text, results) for task, (title, text) in _SECTIONS.items()],
        "<h2>Training</h2><p>Loss by step of each stage.</p><div class=curves>",
        *[loss_curve(name, workdir / name) for name in times],
        "</div>",
        _times_table(times),
        "<h2>All results</h2><p>Fractions of 1; similarities are cosines under the teacher's vision tower. Intervals: "
        "<a href=evaluation/report.html>report of the evaluation</a>.</p>",
        "<div class=groups>",
        *[_group(prefix, title, numbers) for prefix, title in _GROUPS.items()],
        "</div>",
    ]
    path = workdir / PAGE
    write_text(
        path,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>SEED in miniature</title><style>{_STYLE}</style><main>{''.join(parts)}</main></html>",
    )
    return path


def _goals_table(numbers: dict[str, float]) -> str:
    rows = []
    for name, (title, goal) in GOALS.items():
        if name.startswith(_INSTRUCTED) and name not in numbers:
            continue
        value, whole = numbers[name], numbers.get(_WHOLE.get(name, ""))
        rows.append(
            f"<tr><td>{title}<td>{_bar(value, goal)}<td class=n>{value:.1%}<td class=n>{goal:.0%}"
            f"<td>{'reached' if value >= goal else 'not reached'}"
            f"<td class=n>{'' if whole is None else f'{whole:.0%}'}"
        )
    head = "<tr><th>task<th><th>result<th>goal<th><th>without any mistake"
    return f"<div class=panel><table>{head}{''.join(rows)}</table></div>"


def _bar(value: float, goal: float | None = None) -> str:
    low = goal is not None and value < goal
    mark = "" if goal is None else f'<b style="left:{goal:.1%}"></b>'
    return f'<div class=bar><i{" class=low" if low else ""} style="width:{value:.1%}"></i>{mark}</div>'


def _conversation(turns: Sequence[Example]) -> str:
    if not turns:
        return ""
    messages = "".join(
        f"<div class=you><span>{html.escape(turn.prompt)}</span></div><div class=it><span>{_reply(turn)}</span></div>"
        for turn in turns
    )
    note = "Each turn is asked with the image that it is about."
    return f"<h2>A conversation with images</h2><p>{note}</p><div class='panel talk'>{messages}</div>"


def _reply(turn: Example) -> str:
    return html.escape(turn.answer) if turn.output is None else _image(turn.output)


def _section(task: str, title: str, text: str, results: Measurements) -> str:
    cards = "".join(_card(example) for example in results.examples if example.task == task)
    return f"<h2>{title}</h2><p>{text}</p><div class=cards>{cards}</div>" if cards else ""


def _card(example: Example) -> str:
    images = example.inputs if example.output is None else (*example.inputs, example.output)
    shown = "".join(map(_image, images))
    prompt = f"<div class=prompt>{html.escape(example.prompt)}</div>" if example.prompt else ""
    answer = f"<div>{html.escape(example.answer)}</div>" if example.answer else ""
    verdict = "right" if example.correct else "wrong"
    return f'<div class="card {verdict}"><div class=pair>{shown}</div>{prompt}{answer}</div>'


def _image(pixels: UInt8[np.ndarray, "S S 3"]) -> str:
    return f'<img src="{data_url(pixels)}" alt="">'


def _times_table(times: dict[str, float]) -> str:
    total = sum(times.values())
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{_bar(seconds / total)}<td class=n>{seconds:.0f} s"
        for name, seconds in times.items()
    )
    return f"<h2>Times</h2><p>{total / 60:.1f} minutes in total.</p><div class=panel><table>{rows}</table></div>"


def _group(prefix: str, title: str, numbers: dict[str, float]) -> str:
    prefix += "_"
    own = {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
    rows = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}<td class=n>{value:.3f}" for name, value in own.items()
    )
    return f"<div class=panel><h3>{title}</h3><table>{rows}</table></div>" if own else ""


def data_url(pixels: UInt8[np.ndarray, "S S 3"]) -> str:
    """Return an image as a `data:` URL."""
    image = Image.fromarray(pixels)
    enlarged = image.resize((_SCALE * image.width, _SCALE * image.height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    enlarged.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def loss_curve(name: str, workdir: Path) -> str:
    """Return a stage's loss over steps as an SVG figure, or "" without at least two points.

    Args:
        name: of the stage.
        workdir: of the stage.
    """
    rows = [row for row in read_metrics(workdir) if row.get("loss") is not None]
    if len(rows) < 2:
        return ""
    steps, losses = (np.array([row[key] for row in rows], float) for key in ("step", "loss"))
    x = (steps - steps[0]) / max(1.0, np.ptp(steps)) * (_CURVE_WIDTH - 12) + 6
    y = _CURVE_HEIGHT - 8 - (losses - losses.min()) / max(1e-9, np.ptp(losses)) * (_CURVE_HEIGHT - 16)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    line = f'<polyline points="{points}" fill="none" stroke="#2f6fed" stroke-width="2" stroke-linejoin="round"/>'
    drawing = f'<svg width="{_CURVE_WIDTH}" height="{_CURVE_HEIGHT}">{line}</svg>'
    caption = f"<strong>{html.escape(name)}</strong>: {losses[0]:.3g} to {losses[-1]:.3g} in {steps[-1]:.0f} steps"
    return f"<figure class=panel>{drawing}<figcaption>{caption}</figcaption></figure>"
