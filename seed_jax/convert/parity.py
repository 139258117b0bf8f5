"""The parity report: what of a conversion was compared, by how much it differs, and whether that is too much."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.convert.key_table import rounded
from seed_jax.convert.tensors import Tensors

STEM = "parity"
_PACKAGES = ("seed-jax", "jax", "flax", "numpy", "torch", "transformers", "peft")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One tensor before and after."""

    name: str
    shape: tuple[int, ...]
    before: str  # number formats
    after: str
    difference: float  # greatest absolute
    exact: bool  # after is before, rounded once to its number format


@dataclasses.dataclass(frozen=True)
class Check:
    """A number that must not exceed its limit."""

    name: str
    value: float
    limit: float
    meaning: str

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # NaN does not pass


@dataclasses.dataclass(frozen=True)
class Report:
    """Every comparison of one conversion; `facts` say of what, `notes` what was left out and why."""

    title: str
    facts: Mapping[str, str]
    differences: tuple[Difference, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(found.exact for found in self.differences) and all(check.passed for check in self.checks)

    def summary(self) -> str:
        """Return one line for the terminal."""
        exact = sum(found.exact for found in self.differences)
        parts = [f"{exact} of {len(self.differences)} tensors exact"]
        parts += [f"{check.name} {check.value:.3g} (limit {check.limit:.3g})" for check in self.checks]
        return f"{'; '.join([*parts, *self.notes])}: {_verdict(self.passed)}"

    def save(self, directory: str | Path) -> Path:
        """Write `parity.md` and `parity.json` and return the first."""
        path = Path(directory) / f"{STEM}.md"
        versions = {name: found for name in _PACKAGES if (found := _version(name))}
        content = {**dataclasses.asdict(self), "versions": versions, "passed": self.passed}
        _write(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
        _write(path, _markdown(self, versions))
        return path


def make_report(
    title: str,
    facts: Mapping[str, str],
    pairs: Sequence[tuple[Tensors, Tensors]],
    forward: Callable[[], tuple[Check, ...]] | None,
    *,
    needs: Sequence[str],
    what: str,
) -> Report:
    """Compare tensors and, where the packages are there, what both sides compute.

    Args:
        pairs: tensors before and after, of the same names.
        forward: computes on both sides; None leaves that out.
        needs: packages that `forward` imports.
        what: it compares, for a note where it cannot.
    """
    differences = tuple(found for before, after in pairs for found in compare(before, after))
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    if forward is None or absent:
        reason = f"{' and '.join(absent)} not installed" if absent else "left out on request"
        return Report(title, facts, differences, (), (f"{what} not compared ({reason})",))
    return Report(title, facts, differences, forward())


def compare(before: Tensors, after: Tensors) -> tuple[Difference, ...]:
    """Compare two sets of tensors of the same names and shapes, one tensor at a time."""
    return tuple(_difference(name, tensor.read(), after[name].read()) for name, tensor in before.items())


def _difference(name: str, before: np.ndarray, after: np.ndarray) -> Difference:
    exact = np.array_equal(rounded(name, before, after.dtype), after)
    wide = np.float32 if after.dtype.kind in "fV" else after.dtype  # bfloat16 is of kind V
    apart = np.abs(before.astype(wide) - after.astype(wide))
    greatest = float(apart.max()) if apart.size else 0.0
    return Difference(name, before.shape, str(before.dtype), str(after.dtype), greatest, exact)


def _markdown(report: Report, versions: Mapping[str, str]) -> str:
    lines = [f"# {report.title}: {_verdict(report.passed)}", ""]
    lines += [f"- {name}: {fact}" for name, fact in report.facts.items()]
    lines += [f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"]
    lines += [f"- {note}" for note in report.notes]
    if report.checks:
        lines += ["", "| check | value | limit | what it is | verdict |", "|---|---|---|---|---|"]
        lines += [
            f"| {c.name} | {c.value:.3g} | {c.limit:.3g} | {c.meaning} | {_verdict(c.passed)} |" for c in report.checks
        ]
    lines += ["", "| tensors (N: a layer) | count | shape | before → after | greatest difference | exact |"]
    lines += ["|---|---|---|---|---|---|", *(_row(pattern, group) for pattern, group in _groups(report.differences))]
    lines += ["", "Exact: the tensor after the conversion is the one before it, rounded once to its number format."]
    return "\n".join(lines) + "\n"


def _groups(differences: tuple[Difference, ...]) -> list[tuple[str, list[Difference]]]:
    groups: dict[Any, list[Difference]] = {}
    for found in differences:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "N", found.name, count=1)
        groups.setdefault((pattern, found.shape, found.before, found.after), []).append(found)
    return [(key[0], group) for key, group in groups.items()]


def _row(pattern: str, group: list[Difference]) -> str:
    first, worst = group[0], max(group, key=lambda found: found.difference)
    shape = " x ".join(map(str, first.shape)) or "scalar"
    exact = "yes" if all(found.exact for found in group) else f"no: {', '.join(f.name for f in group if not f.exact)}"
    formats = first.before if first.before == first.after else f"{first.before} → {first.after}"
    return f"| `{pattern}` | {len(group)} | {shape} | {formats} | {worst.difference:.3g} | {exact} |"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
