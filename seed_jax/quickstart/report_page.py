"""The page that shows a quickstart: what it reached, how, and what it looks like; one file, nothing fetched."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seed_jax.quickstart.measure import Example, Measured

PAGE = "report.html"
GOALS = {
    "caption_held_attributes": ("Captions: attributes right", 0.95),
    "answer_held_all": ("Questions answered right", 0.95),
    "rebuilt_attributes": ("Pictures through 32 codes: attributes right", 0.90),
    "drawn_attributes": ("Drawings from captions: attributes right", 0.90),
    "edited_attributes": ("Edits: attributes right", 0.80),
}
_WHOLE = {  # the harder figure beside each goal: answers without any mistake
    "caption_held_attributes": "caption_held_whole",
    "rebuilt_attributes": "rebuilt_whole",
    "drawn_attributes": "drawn_whole",
    "edited_attributes": "edited_whole",
}
_SECTIONS = {
    "rebuild": ("Through 32 codes and back", "Left a picture, right what its 32 codes draw. The texture may change."),
    "draw": ("Drawn from a caption", "The language model writes 32 codes, the decoder draws them."),
    "describe": ("Described", "The language model reads a picture's 32 codes."),
    "edit": ("Edited", "Left the picture that was shown, right what was drawn after the instruction."),
    "answer": ("Asked", "One question about one picture."),
}
_GROUPS = {
    "caption_held": "Captions, held-out combinations",
    "caption_known": "Captions, known combinations",
    "answer_held": "Answers, held-out combinations",
    "answer_known": "Answers, known combinations",
    "rebuilt": "Through 32 codes",
    "drawn": "Drawn from captions",
    "edited": "Edited",
    "free": "Drawn from captions, without the grammar that asks for 32 codes",
    "qformer": "Stage I: retrieval among 200 held-out pictures",
    "codebook": "Stage II: codes, and retrieval through them",
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
img{width:96px;height:96px;border-radius:6px}.said{color:var(--soft)}
.talk{max-width:640px}.talk div{display:flex;margin:.5rem 0}.talk span{padding:.5rem .9rem;border-radius:14px}
.talk .you{justify-content:flex-end}.talk .you span{background:var(--blue);color:#fff}.talk .it span{background:#eef1f6}
.talk img{width:144px;height:144px;display:block}
.curves{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}figcaption{color:var(--soft);font-size:13px}
.groups{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(330px,1fr))}
h3{font-size:1rem;margin:0 0 .3rem}
"""


def write(workdir: Path, found: Measured, times: dict[str, float]) -> Path:
    """Write `report.html` into a workdir."""
    numbers = found.numbers
    parts = [
        "<h1>SEED in miniature</h1>",
        "<p>A drawn world, pictures as 32 discrete codes, and a small language model that reads and writes them. "
        "What is asked here shows combinations of size, colour and shape that no training picture shows. Whether an "
        "answer is right is judged by programs that read pixels and words; wrong ones have a red edge.</p>",
        _goals(numbers),
        _talk([each for each in found.examples if each.task == "talk"]),
        *[_examples(task, *words, found) for task, words in _SECTIONS.items()],
        "<h2>Training</h2><p>Loss over steps, each stage an ordinary one.</p><div class=curves>",
        *[curve(name, workdir / name / "metrics.jsonl") for name in times],
        "</div>",
        _times(times),
        "<h2>All figures</h2><p>Shares of 1, similarities are cosines under the teacher.</p><div class=groups>",
        *[_group(prefix, title, numbers) for prefix, title in _GROUPS.items()],
        "</div>",
    ]
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>SEED in miniature</title><style>{_STYLE}</style><main>{''.join(parts)}</main></html>"
    )
    temporary = workdir / f".{PAGE}.tmp"
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(workdir / PAGE)


def _goals(numbers: dict[str, float]) -> str:
    rows = []
    for name, (title, goal) in GOALS.items():
        value, whole = numbers[name], numbers.get(_WHOLE.get(name, ""))
        rows.append(
            f"<tr><td>{title}<td>{_bar(value, goal)}<td class=n>{value:.1%}<td class=n>{goal:.0%}"
            f"<td>{'reached' if value >= goal else 'not yet'}<td class=n>{'' if whole is None else f'{whole:.0%}'}"
        )
    head = "<tr><th>what<th><th>found<th>goal<th><th>without any mistake"
    return f"<div class=panel><table>{head}{''.join(rows)}</table></div>"


def _bar(value: float, goal: float | None = None) -> str:
    low = goal is not None and value < goal
    mark = "" if goal is None else f'<b style="left:{goal:.1%}"></b>'
    return f'<div class=bar><i{" class=low" if low else ""} style="width:{value:.1%}"></i>{mark}</div>'


def _talk(turns: Sequence[Example]) -> str:
    if not turns:
        return ""
    said = "".join(
        f"<div class=you><span>{html.escape(turn.asked)}</span></div><div class=it><span>{_reply(turn)}</span></div>"
        for turn in turns
    )
    note = "Each turn is asked with the picture it is about."
    return f"<h2>A conversation with pictures</h2><p>{note}</p><div class='panel talk'>{said}</div>"


def _reply(turn: Example) -> str:
    return html.escape(turn.answer) if turn.drawn is None else _image(turn.drawn)


def _examples(task: str, title: str, words: str, found: Measured) -> str:
    cards = "".join(_card(each) for each in found.examples if each.task == task)
    return f"<h2>{title}</h2><p>{words}</p><div class=cards>{cards}</div>" if cards else ""


def _card(example: Example) -> str:
    shown = "".join(map(_image, (*example.pictures, *([] if example.drawn is None else [example.drawn]))))
    asked = f"<div class=said>{html.escape(example.asked)}</div>" if example.asked else ""
    answer = f"<div>{html.escape(example.answer)}</div>" if example.answer else ""
    return (
        f'<div class="card {"right" if example.right else "wrong"}"><div class=pair>{shown}</div>{asked}{answer}</div>'
    )


def _image(picture) -> str:
    return f'<img src="{picture_data(picture)}" alt="">'


def _times(times: dict[str, float]) -> str:
    whole = sum(times.values())
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{_bar(seconds / whole)}<td class=n>{seconds:.0f} s"
        for name, seconds in times.items()
    )
    return f"<h2>Times</h2><p>{whole / 60:.1f} minutes in all.</p><div class=panel><table>{rows}</table></div>"


def _group(prefix: str, title: str, numbers: dict[str, float]) -> str:
    own = {name.removeprefix(f"{prefix}_"): value for name, value in numbers.items() if name.startswith(f"{prefix}_")}
    rows = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}<td class=n>{value:.3f}" for name, value in own.items()
    )
    return f"<div class=panel><h3>{title}</h3><table>{rows}</table></div>" if own else ""


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
