"""Join what every host knows of the batches' position into one value that any number of hosts can restore from."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from seed_jax.data.lane_states import merge_states


def merge_over_hosts(state: dict[str, Any]) -> dict[str, Any]:
    """Return the position of all lanes; every host calls this at the same step."""
    if jax.process_count() == 1:
        return state
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int32(text.size)).max())
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: text.size] = text
    return merge_states([json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)])
