"""The report of a quickstart: results, examples and training curves in one HTML file that loads nothing else."""

import colorsys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seed_jax.evaluation.report.components import BAD, GOOD, Verdict, document, image_tag
from seed_jax.files import write_text
from seed_jax.recipes.page import loss_curve, provenance_line, section, times_chart
from seed_jax.recipes.quickstart.measure import Example, Measurements

PAGE = "report.html"
# Result -> title and goal. Only answers without any mistake count.
GOALS = {
    "caption_held_out_whole": ("Captions without any mistake", 0.90),
    "answer_held_out_all": ("Correct answers", 0.95),
    "rebuilt_whole": ("Images through 32 codes and back, without any mistake", 0.88),
    "drawn_whole": ("Images drawn from captions, without any mistake", 0.85),
    "edited_whole": ("Edited images without any mistake", 0.80),
    "codebook_code_t2i_recall@1": ("Retrieval: the caption's image among 200, by its codes", 0.50),
    "free_images_whole": ("Images of exactly 32 codes, without the grammar", 1.0),
}
_NEAR = 0.05  # below the goal by at most this much: a near miss
_NEAR_MISS = Verdict("near", "≈", "near miss")
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
_SCALE = 3  # of images, so that the browser's smoothing leaves edges sharp
_NUM_FLOWS = 1  # images shown with their codes

Pixels = UInt8[np.ndarray, "S S 3"]


def write_report(
    workdir: Path, results: Measurements, times: Mapping[str, float], provenance: Mapping[str, str] | None = None
) -> Path:
    """Write `report.html`.

    Args:
        workdir: of the quickstart; its stages' `metrics.jsonl` give the curves.
        results: what was measured.
        times: step -> seconds.
        provenance: name -> value of what tells runs apart, such as seed and machine.

    Returns:
        The path of the page.
    """
    numbers, examples = results.numbers, results.examples
    curves = [loss_curve(name, workdir / name) for name in times]
    parts = [
        "<h1>SEED in miniature</h1>",
        '<p class="lead">An image becomes 32 discrete codes, and a small language model reads and writes them like '
        "words. Every sample below shows a combination of size, color and shape that no training image shows; programs "
        "that read pixels and text judge the answers.</p>",
        provenance_line(provenance or {}),
        _flows([example for example in examples if example.task == "rebuild" and example.codes]),
        '<div class="columns">',
        _goals(numbers),
        _conversation([example for example in examples if example.task == "talk"]),
        "</div>",
        _commands(workdir),
        *[section(title, text, _cards(examples, task)) for task, (title, text) in _SECTIONS.items()],
        '<h2>Training</h2><p>Loss of each stage over its steps.</p><div class="charts">',
        *curves,
        "</div>",
        times_chart(times),
        "<h2>All results</h2><p>Fractions of 1; similarities are cosines under the teacher's vision tower. Intervals: "
        '<a href="evaluation/report.html">report of the evaluation</a>.</p><div class="charts">',
        *[_group(prefix, title, numbers) for prefix, title in _GROUPS.items()],
        "</div>",
    ]
    path = workdir / PAGE
    write_text(path, document("SEED in miniature", "".join(parts)))
    return path


def _flows(examples: Sequence[Example]) -> str:
    """Show how images become codes, and what these draw."""
    flows = "".join(
        f'<div class="flow"><figure>{_image(example.inputs[0], "an image")}<figcaption>image</figcaption></figure>'
        f"{_codes(example.codes)}<figure>{_image(example.output, 'what the codes draw')}"
        f"<figcaption>drawn from the codes {_mark(GOOD if example.correct else BAD)}</figcaption></figure></div>"
        for example in examples[:_NUM_FLOWS]
        if example.output is not None
    )
    text = "Equal codes have equal colors. The language model sees these numbers and nothing else of an image."
    return section("Image, its 32 codes, and what they draw", text, flows)


def _codes(codes: Sequence[int]) -> str:
    return f'<div class="codes">{"".join(map(_code, codes))}</div>'


def _code(code: int) -> str:
    # Golden-ratio steps give neighboring codes different hues; light enough for dark text in both color schemes.
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(code * 0.618034 % 1, 0.78, 0.55))
    return f'<span style="background:rgb({red},{green},{blue})">{code}</span>'


def judge(value: float, goal: float) -> Verdict:
    """Return whether a result reaches its goal, or misses it narrowly."""
    if value >= goal:
        return Verdict(GOOD.style, GOOD.symbol, "reached")
    return _NEAR_MISS if value >= goal - _NEAR else Verdict(BAD.style, BAD.symbol, "missed")


def _mark(verdict: Verdict) -> str:
    return f'<span class="verdict {verdict.style}">{verdict.symbol} {verdict.text}</span>'


def _goals(numbers: Mapping[str, float]) -> str:
    rows = []
    for name, (title, goal) in GOALS.items():
        if name not in numbers:  # SEED-1's language model neither answers nor edits
            continue
        value = numbers[name]
        verdict = judge(value, goal)
        rows.append(
            f'<span class="name">{title}</span><div class="meter"><i class="{verdict.style}" '
            f'style="width:{value:.1%}"></i><u style="left:calc({goal:.0%} - 2px)"></u></div>'
            f'{_mark(verdict)}<b>{value:.1%}</b><span class="of">goal {goal:.0%}</span>'
        )
    return section("Goals", "", f'<div class="goals">{"".join(rows)}</div>')


def _conversation(turns: Sequence[Example]) -> str:
    if not turns:
        return ""
    messages = "".join(
        f'<div class="turn user">{"".join(_image(image, "the image asked about") for image in turn.inputs)}'
        f"<p>{escape(turn.prompt)}</p></div>"
        f'<div class="turn">{_reply(turn)}{_mark(GOOD if turn.correct else BAD)}</div>'
        for turn in turns
    )
    note = "Beside each request the image that it is about."
    return section("A conversation with images", note, f'<div class="talk">{messages}</div>')


def _reply(turn: Example) -> str:
    return f"<p>{escape(turn.answer)}</p>" if turn.output is None else _image(turn.output, "the answer")


def _commands(workdir: Path) -> str:
    model = escape(str(workdir))
    lines = (
        f"seed-jax chat --model {model} --out chats",
        f'seed-jax generate --model {model} --image {model}/data/examples/00.png --prompt "How many things are there?"',
        f"seed-jax tokenize --model {model}/codebook {model}/data/examples --out codes.jsonl",
        f"seed-jax serve --model {model} --ui --port 8000",
    )
    return section("Next", "", f"<pre>{chr(10).join(lines)}</pre>")


def _cards(examples: Sequence[Example], task: str) -> str:
    cards = "".join(_card(example) for example in examples if example.task == task)
    return f'<div class="cards">{cards}</div>' if cards else ""


def _card(example: Example) -> str:
    images = example.inputs if example.output is None else (*example.inputs, example.output)
    verdict = GOOD if example.correct else BAD
    prompt = f"<p>{escape(example.prompt)}</p>" if example.prompt else ""
    answer = f"<div>{escape(example.answer)}</div>" if example.answer else ""
    return (
        f'<article class="card {verdict.style}"><div class="images pair">{"".join(map(_image, images))}</div>{prompt}'
        f"{answer}{_mark(verdict)}</article>"
    )


def _image(pixels: Pixels, description: str = "") -> str:
    return image_tag(Image.fromarray(pixels), description, scale=_SCALE)


def _group(prefix: str, title: str, numbers: Mapping[str, float]) -> str:
    prefix += "_"
    own = {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
    rows = "".join(f'<tr><td>{escape(name.replace("_", " "))}<td class="n">{value:.3f}' for name, value in own.items())
    return f'<div class="chart"><h3>{title}</h3><table>{rows}</table></div>' if own else ""
