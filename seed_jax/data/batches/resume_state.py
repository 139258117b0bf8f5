"""The saved position of packed batches, and how to move it to another number of hosts.

A state is plain JSON data: `{"format", "data": what the rows depend on, "step", "lanes": {"0": {...}, ...}}`. Every
host saves its own lanes; merged, the states of all hosts let any number of hosts go on.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from seed_jax.errors import UserError

FORMAT = 2


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the states that all hosts saved after the same step into one with every lane.

    `set_state` of an iterator on any number of hosts takes it, and picks its lanes.
    """
    first = states[0]
    for state in states[1:]:
        check_same(state, first["data"])
    steps = sorted({state["step"] for state in states})
    if len(steps) > 1:
        raise UserError(f"The data positions to merge are from different steps {steps}: use those of one checkpoint.")
    lanes = {name: lane for state in states for name, lane in state["lanes"].items()}
    if len(lanes) < sum(len(state["lanes"]) for state in states):
        raise UserError("Two of the data positions to merge hold the same lane: give each host's position once.")
    return {
        **first,
        "lanes": {str(number): lane for number, lane in enumerate(_in_order(lanes, first["data"]["rows"]))},
    }


def dropped(state: dict[str, Any]) -> dict[str, int]:
    """Return how many samples this state's lanes have left out so far, by part and reason."""
    return dict(sum((Counter(lane["dropped"]) for lane in state["lanes"].values()), Counter()))


def check_same(state: dict[str, Any], data: dict[str, Any]) -> None:
    """Refuse a position in other data, listing every difference."""
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
            f"The saved data position does not fit the data of this run ({'; '.join(differences)}): "
            "restore the data and settings, or start in a new workdir."
        )


def own_lanes(state: dict[str, Any], lanes: Iterable[int]) -> list[dict[str, Any]]:
    """Return the states of `lanes`, in order."""
    missing = [number for number in lanes if str(number) not in state["lanes"]]
    if missing:
        raise UserError(
            f"The saved data position lacks the lanes {missing} of this host: it is one of several hosts' positions; "
            "merge those of all hosts first."
        )
    return [state["lanes"][str(number)] for number in lanes]


def _in_order(lanes: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    return own_lanes({"lanes": lanes}, range(rows))
