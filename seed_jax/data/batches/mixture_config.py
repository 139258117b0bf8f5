"""Mixtures as plain data, as in `config.data.mixture`.

A mixture is a list of components; a component is a dict:

| key | meaning |
|---|---|
| path | shard directory, or a list of directories that count as one dataset |
| task, params | template and its parameters (`templates.make_template`) |
| weight | frequency of its batches relative to those of the others |
| batch_size | samples per such batch (default 1: weight is a share of samples) |
| cycles | epochs until the component is exhausted (default: no end); training ends when all components are |
| question | question for records that are captioned images or videos (`Renderer`) |
| suffix | appended to the records' own questions |

`weight_by` defines what the weights are shares of:

- "samples": component i makes up weight_i * batch_size_i of the samples. With the original's weights and batch sizes
  this reproduces the original, which draws the pipe of the next whole batch by weight.
- "tokens": component i makes up weight_i of the tokens. The original's batches all have about 23,000 padded positions,
  so its weights are shares of those. Samples are drawn in proportion to weight_i / (mean tokens per sample), with the
  mean measured on `NUM_MEASURED` records of the component, rendered with its template; dropped samples count as empty.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from seed_jax.data import templates
from seed_jax.data.batches.record_stream import MixtureComponent, evenly_spaced, open_mixture, render_record
from seed_jax.data.shards.shards import JoinedShards, Shards
from seed_jax.data.templates.renderer import Renderer
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError

WEIGHT_BY = ("samples", "tokens")
NUM_MEASURED = 256
_REQUIRED = ("path", "task", "weight")
_OPTIONAL = ("params", "batch_size", "cycles", "question", "suffix")


def make_mixture(
    entries: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, weight_by: str = "samples"
) -> list[MixtureComponent]:
    """Build the components of a mixture.

        make_mixture([{"path": "shards/laion", "task": "image_text_pair", "weight": 1}], vocabulary)

    Args:
        entries: the components as dicts, see above.
        vocabulary: the vocabulary to render with.
        weight_by: "samples" or "tokens".

    Raises:
        UserError: one error lists all problems of all entries.
    """
    if weight_by not in WEIGHT_BY:
        raise UserError(f"data.weight_by is {weight_by!r}, expected one of {', '.join(WEIGHT_BY)}.")
    components = []
    problems = []
    for number, entry in enumerate(entries):
        try:
            components.append(_component(entry, vocabulary))
        except UserError as error:
            problems.append(f"component {number} ({entry.get('path')}): {error}")
    if problems:
        raise UserError(" ".join(problems))
    if weight_by == "samples":
        return components
    opened = open_mixture([component.directory for component in components])
    return [
        dataclasses.replace(component, weight=entry["weight"] / mean_tokens(component, shards))
        for entry, component, shards in zip(entries, components, opened, strict=True)
    ]


def mean_tokens(component: MixtureComponent, shards: Shards | JoinedShards) -> float:
    """Return the mean number of tokens that a record of a component gives, measured at evenly spaced records."""
    numbers = evenly_spaced(len(shards), NUM_MEASURED)
    tokens = 0
    for number in numbers:
        samples = render_record(component, shards[number], number)
        tokens += sum(len(sample) for sample in samples if sample.kept)
    if not tokens:
        raise UserError(
            f"None of {len(numbers)} records of {component.directory} gives a sample: check the task of this component."
        )
    return tokens / len(numbers)


def _component(entry: Mapping[str, Any], vocabulary: Vocabulary) -> MixtureComponent:
    missing = [key for key in _REQUIRED if key not in entry]
    unknown = [key for key in entry if key not in (*_REQUIRED, *_OPTIONAL)]
    if missing or unknown:
        raise UserError(f"missing keys: {', '.join(missing) or 'none'}; unknown keys: {', '.join(unknown) or 'none'}.")
    batch_size = entry.get("batch_size", 1)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size is {batch_size!r}, expected an integer of at least 1.")
    template = templates.make_template(entry["task"], entry.get("params") or {}, vocabulary)
    render = Renderer(template, entry.get("question"), entry.get("suffix") or "")
    return MixtureComponent(_directories(entry["path"]), render, entry["weight"] * batch_size, entry.get("cycles"))


def _directories(path: Any) -> str | tuple[str, ...]:
    if isinstance(path, list | tuple) and path and all(isinstance(directory, str) for directory in path):
        return tuple(path)
    if not isinstance(path, str) or not path:
        raise UserError(f"path is {path!r}, expected a shard directory or a list of them.")
    return path
