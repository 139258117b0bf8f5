"""What is left of a failed save."""

import time
from pathlib import Path

from seed_jax.checkpoint.store import Store


def next_start_keeps(workdir: Path, *steps: str) -> bool:
    """Return whether a new Store leaves the checkpoints of these steps only.

    Threads of a save that failed in this process may go on for a moment, and write again what was removed.
    """
    for _ in range(100):
        Store(workdir).close()
        if sorted(path.name for path in (workdir / "checkpoints").iterdir()) == sorted(steps):
            return True
        time.sleep(0.1)
    return False
