"""The report of an evaluation: results.json, a Markdown table beside the papers' numbers, and one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_jax.evaluation.report.page import caveats, interval_text, paper_numbers, render_page
from seed_jax.evaluation.runner import RESULTS, TaskRun
from seed_jax.files import write_json, write_text

TABLE, PAGE = "report.md", "report.html"


def write_report(directory: Path, runs: Sequence[TaskRun]) -> Path:
    """Write `results.json`, `report.md` and `report.html`; return the path of the page.

    Args:
        directory: the --out of the run.
        runs: the finished tasks.
    """
    summary = {
        run.results["name"]: {
            key: run.results[key]
            for key in ("metrics", "intervals", "groups", "scored", "bad", "notes", "paper", "decoding", "model")
        }
        for run in runs
    }
    write_json(directory / RESULTS, {"tasks": summary})
    write_text(directory / TABLE, markdown_table([run.results for run in runs]))
    page = directory / PAGE
    write_text(page, render_page(runs))
    return page


def markdown_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the scores of tasks beside the papers' numbers, with all caveats."""
    lines = [
        "| task | metric | this run | 95 % interval | samples | papers |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, value in result["metrics"].items():
            papers = paper_numbers(result, name)
            lines.append(
                f"| {result['name']} | {name} | {value:.2f} | {interval_text(result, name)} | {result['scored']}"
                f" | {papers or '-'} |"
            )
    lines.append("")
    for result in results:
        lines += [f"- {result['name']}: {note}" for note in caveats(result)]
    return "\n".join(lines).rstrip() + "\n"
