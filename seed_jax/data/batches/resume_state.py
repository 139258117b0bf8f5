"""The saved position of a data pipeline, and how to move it to another number of hosts.

A state is plain JSON data: `{"format", "data": what the rows depend on, "step", "rows": {"0": {...}, ...}}`, with one
entry per row of the global batch. Every host saves the rows that it produces; the merged states of all hosts can be
restored on any number of hosts.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from seed_jax.errors import UserError

FORMAT = 3


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the states that all hosts saved after the same step into one with every row.

    `set_state` of an iterator on any number of hosts accepts it and selects its own rows.
    """
    first = states[0]
    for state in states[1:]:
        check_same(state, first["data"])
    steps = sorted({state["step"] for state in states})
    if len(steps) > 1:
        raise UserError(f"The data positions to merge are from different steps {steps}: use those of one checkpoint.")
    rows = {index: row for state in states for index, row in state["rows"].items()}
    if len(rows) < sum(len(state["rows"]) for state in states):
        raise UserError("Two of the data positions to merge hold the same row: give each host's position once.")
    in_order = own_rows({"rows": rows}, range(first["data"]["batch_size"]))
    return {**first, "rows": {str(index): row for index, row in enumerate(in_order)}}


def dropped(state: dict[str, Any]) -> dict[str, int]:
    """Return how many samples the rows of this state have dropped so far, by component and reason."""
    return dict(sum((Counter(row["dropped"]) for row in state["rows"].values()), Counter()))


def has_ended(state: dict[str, Any]) -> bool | None:
    """Return whether the rows of this state hold no further samples; None where the data has no end."""
    ends = [row.get("ended") for row in state.get("rows", {}).values()]
    return all(ends) if ends and None not in ends else None


def check_same(state: dict[str, Any], data: dict[str, Any]) -> None:
    """Raise UserError, listing all differences, if a position belongs to other data."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"The saved data position is not of format {FORMAT}: it was saved by another version of seed_jax."
        )
    saved = state["data"]
    if saved != data:
        differences = [
            f"{key} was {saved.get(key)}, is {data.get(key)}"
            for key in {**data, **saved}
            if saved.get(key) != data.get(key)
        ]
        raise UserError(
            f"The saved data position does not match the data of this run ({'; '.join(differences)}): restore data and "
            "settings, or start in a new workdir."
        )


def own_rows(state: dict[str, Any], batch_indices: Iterable[int]) -> list[dict[str, Any]]:
    """Return the states of the rows at `batch_indices`, in order."""
    indices = list(batch_indices)
    missing = [index for index in indices if str(index) not in state["rows"]]
    if missing:
        raise UserError(
            f"The saved data position lacks the rows {missing} of this host: it is the position of one of several "
            "hosts; merge those of all hosts first."
        )
    return [state["rows"][str(index)] for index in indices]
