"""Parity reports: what was compared after a conversion, by how much it differs, and whether that passes."""

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from seed_jax.convert.key_table import checked_cast
from seed_jax.convert.tensors import TensorDict
from seed_jax.files import write_json, write_text

STEM = "parity"
_PACKAGES = ("seed-jax", "jax", "flax", "numpy", "torch", "transformers", "peft")


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """One tensor before and after a conversion.

    Args:
        before, after: dtypes.
        difference: greatest absolute difference.
        exact: whether the tensor after the conversion equals the one before it, cast once to its dtype.
    """

    name: str
    shape: tuple[int, ...]
    before: str
    after: str
    difference: float
    exact: bool


@dataclasses.dataclass(frozen=True)
class Check:
    """A measured value that must not exceed its limit.

    Args:
        meaning: what the value is, with its unit.
    """

    name: str
    value: float
    limit: float
    meaning: str

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit; NaN is not."""
        return self.value <= self.limit


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """All comparisons of one conversion.

    Args:
        title: such as "Export of a language model".
        facts: key -> value about the conversion, such as its source and destination.
        notes: what was not compared, and why.
    """

    title: str
    facts: Mapping[str, str]
    differences: tuple[TensorDifference, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every tensor is exact and every check passed."""
        return all(one.exact for one in self.differences) and all(check.passed for check in self.checks)

    def summary(self) -> str:
        """Return one line for the terminal."""
        exact = sum(one.exact for one in self.differences)
        parts = [f"{exact} of {len(self.differences)} tensors exact"]
        parts += [f"{check.name} {check.value:.3g} (limit {check.limit:.3g})" for check in self.checks]
        return f"{'; '.join([*parts, *self.notes])}: {_verdict(self.passed)}"

    def save(self, directory: str | Path) -> Path:
        """Write `parity.md` and `parity.json`; return the path of the former."""
        path = Path(directory) / f"{STEM}.md"
        write_json(
            path.with_suffix(".json"),
            {**dataclasses.asdict(self), "versions": _versions(), "passed": self.passed},
            indent=1,
        )
        write_text(path, self.markdown())
        return path

    def markdown(self) -> str:
        """Return the report as a page."""
        return _markdown(self, _versions())


def make_report(
    title: str,
    facts: Mapping[str, str],
    pairs: Sequence[tuple[TensorDict, TensorDict]],
    forward: Callable[[], tuple[Check, ...]] | None,
    *,
    needs: Sequence[str],
    what: str,
) -> ParityReport:
    """Compare tensors and, where the needed packages are installed, the outputs of both models.

    Args:
        title, facts: of the report.
        pairs: tensors before and after, with the same names.
        forward: runs both models and compares their outputs; None skips that.
        needs: packages that `forward` imports.
        what: the outputs that `forward` compares, for the note where it is skipped.
    """
    differences = tuple(one for before, after in pairs for one in compare_tensors(before, after))
    absent = [name for name in needs if importlib.util.find_spec(name) is None]
    if forward is None or absent:
        reason = f"{' and '.join(absent)} not installed" if absent else "skipped on request"
        return ParityReport(title, facts, differences, (), (f"{what} not compared ({reason})",))
    return ParityReport(title, facts, differences, forward())


def compare_tensors(before: TensorDict, after: TensorDict) -> tuple[TensorDifference, ...]:
    """Compare two sets of tensors with the same names and shapes, one tensor at a time."""
    return tuple(_difference(name, tensor.read(), after[name].read()) for name, tensor in before.items())


def _difference(name: str, before: np.ndarray, after: np.ndarray) -> TensorDifference:
    exact = np.array_equal(checked_cast(name, before, after.dtype), after)
    wide = np.float32 if after.dtype.kind in "fV" else after.dtype  # bfloat16 is of kind V
    difference = np.abs(before.astype(wide) - after.astype(wide))
    greatest = float(difference.max()) if difference.size else 0.0
    return TensorDifference(name, before.shape, str(before.dtype), str(after.dtype), greatest, exact)


def _markdown(report: ParityReport, versions: Mapping[str, str]) -> str:
    lines = [f"# {report.title}: {_verdict(report.passed)}", ""]
    lines += [f"- {name}: {fact}" for name, fact in report.facts.items()]
    lines += [f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"]
    lines += [f"- {note}" for note in report.notes]
    if report.checks:
        lines += ["", "| check | value | limit | meaning | verdict |", "|---|---|---|---|---|"]
        lines += [
            f"| {c.name} | {c.value:.3g} | {c.limit:.3g} | {c.meaning} | {_verdict(c.passed)} |" for c in report.checks
        ]
    lines += ["", "| tensors (N: layer) | count | shape | dtype before → after | greatest difference | exact |"]
    lines += [
        "|---|---|---|---|---|---|",
        *(_row(pattern, group) for pattern, group in _group_layers(report.differences)),
    ]
    lines += ["", "Exact: the tensor after the conversion equals the one before it, cast once to its dtype."]
    return "\n".join(lines) + "\n"


def _group_layers(differences: tuple[TensorDifference, ...]) -> list[tuple[str, list[TensorDifference]]]:
    groups: dict[tuple, list[TensorDifference]] = {}
    for one in differences:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "N", one.name, count=1)
        groups.setdefault((pattern, one.shape, one.before, one.after), []).append(one)
    return [(key[0], group) for key, group in groups.items()]


def _row(pattern: str, group: list[TensorDifference]) -> str:
    first, worst = group[0], max(group, key=lambda one: one.difference)
    shape = " x ".join(map(str, first.shape)) or "scalar"
    exact = "yes" if all(one.exact for one in group) else f"no: {', '.join(one.name for one in group if not one.exact)}"
    formats = first.before if first.before == first.after else f"{first.before} → {first.after}"
    return f"| `{pattern}` | {len(group)} | {shape} | {formats} | {worst.difference:.3g} | {exact} |"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _versions() -> dict[str, str]:
    return {name: version for name in _PACKAGES if (version := _version(name))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
