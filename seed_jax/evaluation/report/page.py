"""The HTML page of an evaluation: one file with one stylesheet that loads nothing else."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from seed_jax import images as image_files
from seed_jax.errors import UserError
from seed_jax.evaluation.answering import LETTERS, GeneratedText, RankedChoices
from seed_jax.evaluation.report.components import document, image_tag
from seed_jax.evaluation.runner import TaskRun
from seed_jax.evaluation.task import Prediction, Sample, drawn_image_path

EXAMPLES = 12  # of each task


def render_page(runs: Sequence[TaskRun]) -> str:
    """Return the page of finished tasks."""
    sections = "".join(_section(run) for run in runs)
    models = {json.dumps(run.results["model"], sort_keys=True): run.results["model"] for run in runs}
    settings = "".join(f"<dl>{_definitions(model)}</dl>" for model in models.values())
    version = runs[0].results["version"] if runs else ""
    return document(
        "Evaluation",
        '<h1>Evaluation</h1><p class="lead">Scores beside the published ones, with bootstrap intervals, and a sample'
        f" of answers. seed-jax {escape(version)}.</p>"
        f"{_summary(runs)}{sections}<section><h2>Model</h2>{settings}</section>",
    )


def _summary(runs: Sequence[TaskRun]) -> str:
    rows = []
    for run in runs:
        result = run.results
        main = [name for name in result["metrics"] if name == result["metric"]]
        for name in main + [name for name in result["metrics"] if name != result["metric"]]:
            value = result["metrics"][name]
            rows.append(
                f"<tr{' class=main' if name == result['metric'] else ''}><td>{escape(result['name'])}<td>{escape(name)}"
                f'<td class="n">{value:.2f}<td class="n">{interval_text(result, name)}<td class="n">{result["scored"]}'
                f"{_papers(result, name)}"
            )
        if not result["metrics"]:
            rows.append(f'<tr><td>{escape(result["name"])}<td colspan="5">not scored: the split has no answers')
    head = '<tr><th>task<th>metric<th class="n">this run<th class="n">95 % interval<th class="n">samples<th>papers'
    return f'<section><div class="table summary"><table>{head}{"".join(rows)}</table></div></section>'


def _papers(result: dict[str, Any], metric: str) -> str:
    papers = paper_numbers(result, metric)
    return f"<td>{escape(papers)}" if papers else '<td class="none">-'


def _section(run: TaskRun) -> str:
    result = run.results
    notes = "".join(f"<li>{escape(note)}" for note in caveats(result))
    parts = [
        f"<h2>{escape(result['name'])}</h2><p>{escape(run.task.summary)}</p>",
        f'<ul class="notes">{notes}</ul>' if notes else "",
        _groups(result),
        _confusion(run),
        '<div class="cards">' + "".join(_card(run, index) for index in _chosen(run)) + "</div>",
        f"<details><summary>Settings</summary><dl>{_definitions(result['decoding'])}</dl></details>",
    ]
    return f"<section>{''.join(parts)}</section>"


def _groups(result: dict[str, Any]) -> str:
    if len(result["groups"]) < 2:
        return ""
    longest = max(100.0, *result["groups"].values())
    rows = "".join(
        f'<span>{escape(name)}</span><i style="width:{max(0.0, 100 * value / longest):.1f}%"></i><b>{value:.1f}</b>'
        for name, value in sorted(result["groups"].items(), key=lambda item: -item[1])[:60]
    )
    return f'<h3>{escape(result["metric"])} by group</h3><div class="bars">{rows}</div>'


def _confusion(run: TaskRun) -> str:
    """Return how often each choice was taken for each true one, of multiple-choice tasks."""
    pairs = [
        (sample.truth.get("answer"), prediction.get("prediction"))
        for sample, prediction in zip(run.samples, run.predictions, strict=True)
        if sample.choices and sample.truth.get("answer") in tuple(LETTERS)
    ]
    if not pairs:
        return ""
    count = max(len(sample.choices) for sample in run.samples)
    columns = [*LETTERS[:count], ""]
    if not any(chosen == "" for _, chosen in pairs):
        columns.pop()
    head = "".join(f'<th class="n">{letter or "none"}' for letter in columns)
    rows = "".join(
        f"<tr><th>{truth}"
        + "".join(
            f'<td class="n{" hit" if chosen == truth else ""}">{pairs.count((truth, chosen))}' for chosen in columns
        )
        for truth in LETTERS[:count]
    )
    return (
        "<h3>True choice (rows) and answer (columns)</h3>"
        f'<div class="table confusion"><table><tr><th>{head}{rows}</table></div>'
    )


def _chosen(run: TaskRun) -> list[int]:
    """Return the indices of samples to show: evenly spaced from the worst to the best, by the main metric."""
    count = len(run.samples)
    values = run.scores.per_sample.get(run.task.metric)
    order = list(range(count))
    if values is not None and len(values) == count:
        order.sort(key=lambda index: (values[index], index))
    if count <= EXAMPLES:
        return order
    step = (count - 1) / (EXAMPLES - 1)
    return [order[round(step * number)] for number in range(EXAMPLES)]


def _card(run: TaskRun, index: int) -> str:
    sample, prediction = run.samples[index], run.predictions[index]
    values = run.scores.per_sample.get(run.task.metric)
    value = values[index] if values is not None and len(values) == len(run.samples) else None
    threshold = run.task.right_from
    verdict = "" if value is None or threshold is None else (" good" if value >= threshold else " bad")
    shown = "" if value is None else f'<span class="score">{escape(run.task.metric)} {value:.1f}</span>'
    texts = "".join(
        f"<dt>{escape(name)}<dd>{escape(text[:600])}"
        for name, text in run.task.describe(sample, prediction).items()
        if text
    )
    return (
        f'<article class="card{verdict}"><div class="id">{escape(sample.id)}{shown}</div>{_images(run, sample)}'
        f"<dl>{texts}</dl>{_prompt(run, sample)}{_tokens(prediction)}</article>"
    )


def _prompt(run: TaskRun, sample: Sample) -> str:
    """Return the text of the user's message, which images precede, as it was given to the model."""
    if not isinstance(run.task, GeneratedText | RankedChoices):
        return ""
    text = run.task.prompt(sample, run.results["model"].get("style", ""))
    return f'<details><summary>prompt</summary><p class="prompt">{escape(text) or "none"}</p></details>'


def _images(run: TaskRun, sample: Sample) -> str:
    """Return the images of a sample, up to four frames of a video, and the one that was drawn for it."""
    try:
        shown = sample.load_images()[:4]
    except UserError:  # deleted since the run
        shown = []
    drawn = drawn_image_path(run.directory, sample.id)
    if drawn.is_file():
        shown.append(image_files.load(drawn))
    return f'<div class="images">{"".join(map(image_tag, shown))}</div>' if shown else ""


def _tokens(prediction: Prediction) -> str:
    """Return the tokens of a generated answer, or the log-probabilities of ranked choices."""
    if "tokens" in prediction:
        summary = f"{len(prediction['tokens'])} tokens, ended by {prediction.get('finish_reason', '')}"
        pieces = prediction["tokens"][:200]
    elif "log_probabilities" in prediction:
        summary = "log p of the choices"
        pieces = [
            f"{letter} {value:.2f}"
            for letter, value in zip(LETTERS, prediction["log_probabilities"]["sum"], strict=False)
        ]
    else:
        return ""
    shown = "".join(f"<span>{escape(piece)}</span>" for piece in pieces)
    return f'<details><summary>{escape(summary)}</summary><p class="tokens">{shown}</p></details>'


def _definitions(values: dict[str, Any]) -> str:
    return "".join(
        f"<dt>{escape(str(name))}<dd>{escape(str(value))}" for name, value in values.items() if value is not None
    )


def paper_numbers(result: dict[str, Any], metric: str) -> str:
    """Return the published values of a metric, with where they are uncertain."""
    return ", ".join(
        f"{number['model']} {number['value']:g}" + (f" ({number['note']})" if number["note"] else "")
        for number in result["paper"]
        if number["metric"] == metric
    )


def interval_text(result: dict[str, Any], metric: str) -> str:
    """Return the bootstrap interval of a metric, or "-" for metrics that are no mean over samples."""
    interval = result["intervals"].get(metric)
    return "-" if interval is None else f"{interval['low']:.2f} to {interval['high']:.2f}"


def caveats(result: dict[str, Any]) -> list[str]:
    """Return what a reader of the numbers must know."""
    notes = list(result["notes"])
    if result["instruction_tuned_on"]:
        notes.append(
            "The official instruction tuning trained on this dataset: scores of such models are not zero-shot."
        )
    if result["limit"] is not None:
        notes.append(f"Only the first {result['limit']} samples were used (--limit).")
    if result["bad"]:
        notes.append(f"{len(result['bad'])} samples were left out as unusable; results.json names them.")
    return notes
