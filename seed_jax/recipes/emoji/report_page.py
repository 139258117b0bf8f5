"""The page of the emoji recipe: one file on the stylesheet of evaluation reports, which loads nothing."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from seed_jax import images
from seed_jax.evaluation.report.components import BAD, GOOD, document, image_tag
from seed_jax.evaluation.runner import TaskRun
from seed_jax.evaluation.task import drawn_image_path
from seed_jax.files import write_text
from seed_jax.recipes.emoji.config import EmojiConfig
from seed_jax.recipes.emoji.measure import DIRECTORY, TOKENIZERS, Measurements
from seed_jax.recipes.emoji.packages import FLAGS, SKIN_TONES, SYMBOLS
from seed_jax.recipes.emoji.tasks import EmojiTask
from seed_jax.recipes.page import loss_curve, provenance_line, section, times_chart

PAGE = "report.html"
_SHOWN = 24  # cards of each task
_SIDE = 128  # pixels of images, which flexible boxes would stretch to equal heights
_TITLES = {SYMBOLS: "symbols", FLAGS: "flags", SKIN_TONES: "skin tones"}
_KINDS = {"seed": "SEED's codes", "kmeans": "k-means of patches", "vqvae": "VQ-VAE of pixels"}
_DIRECTIONS = {"i2t": "name of an image", "t2i": "image of a name"}


def write_report(
    workdir: Path,
    config: EmojiConfig,
    results: Measurements,
    times: Mapping[str, float],
    provenance: Mapping[str, str],
) -> Path:
    """Write the page and return its path.

    Args:
        workdir: of the recipe; its stages' `metrics.jsonl` give the curves.
        config: options of the recipe.
        results: what was measured.
        times: step -> seconds.
        provenance: name -> what tells this run from others.
    """
    packages, numbers = config.packages, results.numbers
    trained = [studio.capitalize() for studio in packages.train]
    parts = [
        f"<h1>Emoji of {escape(packages.test.capitalize())}, never seen in training</h1>",
        f'<p class="lead">Trained from scratch on the emoji of {escape(", ".join(trained))}: '
        "images as 32 discrete codes, and a small language model that reads and writes them. Intervals, all answers: "
        f'<a href="{DIRECTORY}/report.html">evaluation</a>.</p>',
        provenance_line(provenance),
        section("Results", "", _table(["", *_TITLES.values()], _main_rows(numbers))),
        section(
            "Codes of meaning or of pixels",
            "Equal codes of 32 between two studios' images of one symbol, and of different ones; AUC of telling these "
            "pairs apart; accuracy of a linear probe of the category on the unseen studio, of symbols that the probe "
            "was trained on and of others. All three give 32 codes out of as many.",
            _table(["codes", "same symbol", "other symbol", "AUC", "probe, new symbols", "probe, known symbols"],
                   list(_code_rows(numbers))),
        ),
        *[_cards(run, results) for run in results.runs],
        section("Training", "Loss by step.", "".join(loss_curve(name, workdir / name) for name in times)),
        times_chart(times),
    ]  # fmt: skip
    path = workdir / PAGE
    write_text(path, document("Emoji", "".join(parts)))
    return path


def _main_rows(numbers: dict[str, float]) -> list[list[str]]:
    rows = [
        ("name of an image: exact", "names_{}_exact"),
        ("name of an image: of the right category", "names_{}_category"),
        ("drawing of a name: right of all", "drawings_{}_right_of_all"),
        ("drawing of a name: right of 100", "drawings_{}_right_of_100"),
        ("image through its codes and back: right of all", "reconstructions_{}_right_of_all"),
        ("redrawn after two examples: nearer to the other studio's image", "restyled_{}_style"),
        ("the same if the image is repeated", "restyled_{}_style_unchanged"),
        ("the same with the other studio's image itself", "restyled_{}_style_wanted"),
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


def _cards(run: TaskRun, results: Measurements) -> str:
    """Return evenly spaced samples of a task as cards: their images, drawings, texts and codes."""
    task = run.task
    assert isinstance(task, EmojiTask)
    count = len(run.samples)
    chosen = [round(number * (count - 1) / max(1, min(_SHOWN, count) - 1)) for number in range(min(_SHOWN, count))]
    cards = "".join(_card(run, index, results.codes[task.group]) for index in dict.fromkeys(chosen))
    return section(
        run.results["name"].replace("_", " ").capitalize(), task.summary, f'<div class="cards">{cards}</div>'
    )


def _card(run: TaskRun, index: int, codes_of_group) -> str:
    sample, prediction = run.samples[index], run.predictions[index]
    is_right = run.scores.per_sample[run.task.metric][index] >= 50
    shown = [_image(source, sample.text) for source in sample.images if isinstance(source, Path)]
    drawn = drawn_image_path(run.directory, sample.id)
    if drawn.is_file():
        shown.append(_image(drawn, f"drawing of {sample.text}"))
    texts = "".join(
        f"<dt>{escape(name)}<dd>{escape(text)}" for name, text in run.task.describe(sample, prediction).items() if text
    )
    codes = prediction.get("codes", codes_of_group[sample.truth["index"]])
    tokens = "".join(f"<span>{int(code)}</span>" for code in codes)
    verdict = GOOD if is_right else BAD
    head = f'<div class="id">{escape(sample.group)}<span title="{verdict.text}">{verdict.symbol}</span></div>'
    return (
        f'<article class="card {verdict.style}">{head}'
        f'<div class="images">{"".join(shown)}</div><dl>{texts}</dl>'
        f'<details><summary>32 codes</summary><p class="tokens">{tokens}</p></details></article>'
    )


def _image(path: Path, description: str) -> str:
    return image_tag(images.load(path).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), description)
