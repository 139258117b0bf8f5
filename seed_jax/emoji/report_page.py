"""The page of the emoji recipe: one file on the stylesheet of evaluation reports, which loads nothing."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from seed_jax import images
from seed_jax.emoji.config import EmojiConfig
from seed_jax.emoji.measure import DIRECTORY, TOKENIZERS, Measurements
from seed_jax.emoji.packages import FLAGS, SKIN_TONES, SYMBOLS
from seed_jax.emoji.tasks import EmojiTask
from seed_jax.evaluation import report
from seed_jax.evaluation.runner import TaskRun
from seed_jax.evaluation.task import drawn_image_path
from seed_jax.files import write_text
from seed_jax.quickstart.report_page import loss_curve

PAGE = "report.html"
_SHOWN = 24  # cards of each task
_SIDE = 96  # pixels of images
_TITLES = {SYMBOLS: "symbols", FLAGS: "flags", SKIN_TONES: "skin tones"}
_KINDS = {"seed": "SEED's codes", "kmeans": "k-means of patches", "vqvae": "VQ-VAE of pixels"}
_DIRECTIONS = {"i2t": "name of an image", "t2i": "image of a name"}


def write_report(workdir: Path, config: EmojiConfig, results: Measurements, times: dict[str, float]) -> Path:
    """Write the page and return its path.

    Args:
        workdir: of the recipe; its stages' `metrics.jsonl` give the curves.
        config: options of the recipe.
        results: what was measured.
        times: step -> seconds.
    """
    packages, numbers = config.packages, results.numbers
    parts = [
        f"<h1>Emoji of {escape(packages.test)}, never seen in training</h1>",
        f'<p class="lead">Trained from scratch on the emoji of {escape(", ".join(packages.train))}: images as 32 '
        "discrete codes, and a small language model that reads and writes them. Seed "
        f'{config.seed}. Intervals and all answers: <a href="{DIRECTORY}/report.html">evaluation</a>.</p>',
        _section("Results", "", _table(["", *_TITLES.values()], _main_rows(numbers))),
        _section(
            "Codes of meaning or of pixels",
            "Equal codes of 32 between two studios' images; AUC of telling one symbol from two by them; accuracy of a "
            "linear probe of the category on the unseen studio. All tokenizers give 32 codes of equal size.",
            _table(["codes", "same symbol", "other symbol", "AUC", "probe, new symbols", "probe, known symbols"],
                   list(_code_rows(numbers))),
        ),
        *[_cards(run, results) for run in results.runs],
        _section("Training", "Loss by step.", "".join(loss_curve(name, workdir / name) for name in times)),
        _section("Seconds", "", _table(["step", "s"], [[name, f"{seconds:.0f}"] for name, seconds in times.items()])),
    ]  # fmt: skip
    path = workdir / PAGE
    style = Path(str(report.__file__)).with_name("page.css").read_text(encoding="utf-8")
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Emoji</title><style>{style}</style></head><body><main>{''.join(parts)}</main></body></html>\n",
    )
    return path


def _main_rows(numbers: dict[str, float]) -> list[list[str]]:
    rows = [
        ("name of an image: exact", "names_{}_exact"),
        ("name of an image: of the right category", "names_{}_category"),
        ("drawing of a name: right of all", "drawings_{}_right_of_all"),
        ("drawing of a name: right of 100", "drawings_{}_right_of_100"),
        ("image through its codes and back: right of all", "reconstructions_{}_right_of_all"),
        ("the judge of drawings, on studios' own images", "judge_{}_right_of_all"),
        *(
            (f"{_DIRECTIONS[way]}, {source}: recall@{k}", f"{name}_{{}}_{way}_recall@{k}")
            for name, source in (("retrieval", "stage I"), ("code_retrieval", "through codes"))
            for way in _DIRECTIONS
            for k in (1, 5, 10)
        ),
    ]
    return [[title, *(_percent(numbers, key.format(group)) for group in _TITLES)] for title, key in rows]


def _code_rows(numbers: dict[str, float]) -> Iterator[list[str]]:
    for kind in TOKENIZERS:
        agreement = f"agreement_{SYMBOLS}_{kind}"
        keys = [f"{agreement}_{name}" for name in ("same", "different", "auc")]
        probes = [f"probe_{kind}_{which}_symbols" for which in ("new", "known")]
        yield [_KINDS[kind], *(_percent(numbers, key) for key in (*keys, *probes))]


def _percent(numbers: dict[str, float], key: str) -> str:
    return f"{numbers[key]:.1%}" if key in numbers else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th{' class=n' if number else ''}>{escape(name)}" for number, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if number else ''}>{escape(cell)}" for number, cell in enumerate(row))
        for row in rows
    )
    return f'<div class="table"><table><tr>{cells}{body}</table></div>'


def _section(title: str, text: str, content: str) -> str:
    note = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>"


def _cards(run: TaskRun, results: Measurements) -> str:
    """Return evenly spaced samples of a task as cards: their images, drawings, texts and codes."""
    task = run.task
    assert isinstance(task, EmojiTask)
    count = len(run.samples)
    chosen = [round(number * (count - 1) / max(1, min(_SHOWN, count) - 1)) for number in range(min(_SHOWN, count))]
    cards = "".join(_card(run, index, results.codes[task.group]) for index in dict.fromkeys(chosen))
    return _section(run.results["name"].replace("_", " "), task.summary, f'<div class="cards">{cards}</div>')


def _card(run: TaskRun, index: int, codes_of_group) -> str:
    sample, prediction = run.samples[index], run.predictions[index]
    is_right = run.scores.per_sample[run.task.metric][index] >= 50
    shown = [images.load(source) for source in sample.images if isinstance(source, Path)]
    drawn = drawn_image_path(run.directory, sample.id)
    if drawn.is_file():
        shown.append(images.load(drawn))
    texts = "".join(
        f"<dt>{escape(name)}<dd>{escape(text)}" for name, text in run.task.describe(sample, prediction).items() if text
    )
    codes = prediction.get("codes", codes_of_group[sample.truth["index"]])
    tokens = "".join(f"<span>{int(code)}</span>" for code in codes)
    mark = "&#10003;" if is_right else "&#10007;"
    head = f'<div class="id">{escape(sample.group)}<span>{mark}</span></div>'
    return (
        f'<article class="card {"good" if is_right else "bad"}">{head}'
        f'<div class="images">{"".join(map(_image, shown))}</div><dl>{texts}</dl>'
        f'<details><summary>32 codes</summary><p class="tokens">{tokens}</p></details></article>'
    )


def _image(image: Image.Image) -> str:
    file = io.BytesIO()
    image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(file, "WEBP", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" width="{_SIDE}" height="{_SIDE}" src="data:image/webp;base64,{data}">'
