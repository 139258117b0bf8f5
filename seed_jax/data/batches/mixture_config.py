"""The parts of a mixture as a config describes them, and what their weights mean.

A part is a dict:

| key | meaning |
|---|---|
| path | directory of shards, or a list of directories that count as one |
| task, params | template and its parameters (`templates.make`) |
| weight | how often its batches come, relative to those of the others |
| batch_size | samples of such a batch (default 1: weight is a share of samples) |
| cycles | how often each record comes before the part is used up (default: no end) |
| question | asked where records are captioned pictures or videos (`Renderer`) |
| suffix | put behind the records' own questions |

`weight_by` says what the weights are shares of:

- "samples": part i makes up weight_i * batch_size_i of the samples. With the original's weights and batch sizes this is
  what the original trains on: it draws the pipe of the next whole batch by weight, and a batch has batch_size samples.
- "tokens": part i makes up weight_i of the tokens. The original's batches all have about 23,000 padded positions, so
  its weights are its shares of those. Samples are drawn in the proportion weight_i / (mean tokens of a sample), with
  the mean taken over `MEASURED` records of the part, rendered with its template; those filtered out count as empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seed_jax.data import templates
from seed_jax.data.batches.record_stream import Part, open_all
from seed_jax.data.shards.shards import JoinedShards, Shards
from seed_jax.data.templates.renderer import Renderer
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError

WEIGHT_BY = ("samples", "tokens")
MEASURED = 256
_NEEDED, _OPTIONAL = ("path", "task", "weight"), ("params", "batch_size", "cycles", "question", "suffix")


def make_parts(
    described: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, weight_by: str = "samples"
) -> list[Part]:
    """Return the parts of a mixture; one UserError names everything that is wrong with their descriptions."""
    if weight_by not in WEIGHT_BY:
        raise UserError(f"data.weight_by is {weight_by!r}, expected one of {', '.join(WEIGHT_BY)}.")
    parts, problems = [], []
    for number, each in enumerate(described):
        try:
            parts.append(_part(each, vocabulary))
        except UserError as error:
            problems.append(f"part {number} ({each.get('path')}): {error}")
    if problems:
        raise UserError(" ".join(problems))
    if weight_by == "samples":
        return parts
    opened = open_all([part.directory for part in parts])
    weights = [
        each["weight"] / mean_tokens(part, shards) for each, part, shards in zip(described, parts, opened, strict=True)
    ]
    return [Part(part.directory, part.render, weight, part.cycles) for part, weight in zip(parts, weights, strict=True)]


def mean_tokens(part: Part, shards: Shards | JoinedShards) -> float:
    """Return the mean number of tokens that a record of a part gives, measured at evenly spaced records."""
    numbers = np.unique(np.linspace(0, len(shards) - 1, min(MEASURED, len(shards))).astype(int)).tolist()
    tokens = 0
    for number in numbers:
        samples = part.render(shards[number], np.random.Generator(np.random.Philox(key=number)))
        tokens += sum(len(sample) for sample in samples if sample.kept)
    if not tokens:
        raise UserError(f"None of {len(numbers)} records of {part.directory} gives a sample: is the task right for it?")
    return tokens / len(numbers)


def _part(described: Mapping[str, Any], vocabulary: Vocabulary) -> Part:
    missing = [key for key in _NEEDED if key not in described]
    unknown = [key for key in described if key not in (*_NEEDED, *_OPTIONAL)]
    if missing or unknown:
        raise UserError(
            f"it lacks {', '.join(missing) or 'nothing'} and has the unknown keys {', '.join(unknown) or '(none)'}."
        )
    batch_size = described.get("batch_size", 1)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}, expected a whole number of at least 1.")
    task = templates.make(described["task"], described.get("params") or {}, vocabulary)
    render = Renderer(task, described.get("question"), described.get("suffix") or "")
    return Part(_paths(described["path"]), render, described["weight"] * batch_size, described.get("cycles"))


def _paths(path: Any) -> str | tuple[str, ...]:
    if isinstance(path, list | tuple) and path and all(isinstance(each, str) for each in path):
        return tuple(path)
    if not isinstance(path, str) or not path:
        raise UserError(f"path is {path!r}, expected a directory of shards or a list of them.")
    return path
