"""Two evaluation runs side by side, on the samples that both scored."""

from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.significance import approximate_randomization, mcnemar, paired_bootstrap
from seed_jax.evaluation.runner import RESULTS
from seed_jax.files import read_json


def compare_runs(one: Path, other: Path) -> dict[str, Any]:
    """Compare the tasks that two runs share.

    Args:
        one: output directory of a run, or of one of its tasks.
        other: of another run.

    Returns:
        Task -> {"samples", "metrics": metric -> values of both, their difference, its interval and p-values}.

    Raises:
        UserError: a directory holds no results, or the two share no task or no sample.
    """
    first, second = _task_results(one), _task_results(other)
    shared = [name for name in first if name in second]
    if not shared:
        raise UserError(
            f"{one} has the tasks {', '.join(first)}, {other} has {', '.join(second)}: compare runs of the same task."
        )
    return {
        "one": str(one),
        "other": str(other),
        "tasks": {name: _compare(first[name], second[name]) for name in shared},
    }


def format_comparison(comparison: dict[str, Any]) -> str:
    """Return a Markdown table of a comparison."""
    lines = [
        f"A: {comparison['one']}",
        f"B: {comparison['other']}",
        "",
        "| task | metric | samples | A | B | A - B | 95 % interval | p, bootstrap | p, randomization | p, McNemar |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, result in comparison["tasks"].items():
        for metric, row in result["metrics"].items():
            exact = "-" if row["p_mcnemar"] is None else f"{row['p_mcnemar']:.4f}"
            lines.append(
                f"| {task} | {metric} | {result['samples']} | {row['one']:.2f} | {row['other']:.2f}"
                f" | {row['difference']:+.2f} | {row['low']:+.2f} to {row['high']:+.2f}"
                f" | {row['p_bootstrap']:.4f} | {row['p_randomization']:.4f} | {exact} |"
            )
        lines += [f"\n{task}: {note}" for note in result["notes"]]
    return "\n".join(lines)


def _task_results(directory: Path) -> dict[str, dict[str, Any]]:
    paths = [directory / RESULTS, *sorted(directory.glob(f"*/{RESULTS}"))]
    found = [read_json(path, "evaluate again") for path in paths if path.is_file()]
    tasks = {results["name"]: results for results in found if "per_sample" in results and "name" in results}
    if not tasks:
        raise UserError(f"{directory} holds no results of `seed-jax eval`: give the directory of its --out.")
    return tasks


def _compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    position = {sample: index for index, sample in enumerate(other["order"])}
    pairs = [(index, position[sample]) for index, sample in enumerate(one["order"]) if sample in position]
    if not pairs:
        raise UserError(f"The two runs of {one['name']} share no sample: compare runs on the same data.")
    metrics = {}
    for name in one["per_sample"]:
        if name not in other["per_sample"]:
            continue
        a = np.array([one["per_sample"][name][index] for index, _ in pairs])
        b = np.array([other["per_sample"][name][index] for _, index in pairs])
        paired = paired_bootstrap(a, b)
        binary = set(np.unique(np.concatenate([a, b]))) <= {0.0, 100.0}
        metrics[name] = {
            "one": float(a.mean()),
            "other": float(b.mean()),
            "difference": paired.difference,
            "low": paired.low,
            "high": paired.high,
            "p_bootstrap": paired.p_value,
            "p_randomization": approximate_randomization(a, b),
            "p_mcnemar": mcnemar(a > 0, b > 0) if binary else None,
        }
    notes = []
    if len(pairs) < max(len(one["order"]), len(other["order"])):
        notes.append(f"A scored {len(one['order'])} samples, B {len(other['order'])}; {len(pairs)} are compared.")
    notes += [f"A and B differ in {key}." for key in ("model", "decoding") if one[key] != other[key]]
    return {"samples": len(pairs), "metrics": metrics, "notes": notes}
