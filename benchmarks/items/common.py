"""What the measurements share: arguments, timing, random parameters, and the rows they print."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

# The working tree, not an installed release, is measured. Set before JAX is imported.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from seed_jax.startup import backends

backends.skip_absent_tpus()
SCALES = ("tiny", "cpu", "gpu")
SIDES = ("seed_jax", "torch")
T = TypeVar("T")


def parse_args(description: str | None, cases: tuple[str, ...] = ()) -> argparse.Namespace:
    """Parse what `run.py` gives every measurement, and `--case` where cases can be chosen.

    Returns:
        The options; `deadline` is when the time budget ends, by `time.perf_counter`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", choices=SCALES, default="tiny", help="sizes of models and inputs")
    parser.add_argument("--side", choices=SIDES, default=SIDES[0], help="implementation")
    if cases:
        parser.add_argument("--case", choices=cases, help="only this case")
    parser.add_argument("--seconds", type=float, default=60.0, help="time budget: later cases are skipped")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch on a CPU")
    args = parser.parse_args()
    args.deadline = time.perf_counter() + args.seconds
    return args


def before(deadline: float, cases: dict[str, T], unit: str) -> Iterator[tuple[str, T]]:
    """Yield the cases that begin before the deadline, and report the others as not measured."""
    for case, options in cases.items():
        if time.perf_counter() < deadline:
            yield case, options
        else:
            report(case, None, unit, note="no time left")


def report(case: str, value: float | None, unit: str, **details: Any) -> None:
    """Print a row: a case, its figure with unit (None where it was not measured) and what else describes it."""
    print(json.dumps({"case": case, "value": value, "unit": unit, **details}), flush=True)


def measure(call: Callable[[], Any], repeats: int = 5, warmup: int = 1) -> dict[str, float]:
    """Time a call that returns when its work is done.

    Returns:
        Median, minimum and maximum of the timed calls, and the first call's time (with compilation), in seconds.
    """
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    for _ in range(warmup - 1):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"median": statistics.median(times), "min": min(times), "max": max(times), "first": first}


def spread(times: dict[str, float], scale: float = 1.0) -> dict[str, float]:
    """Return the least and the greatest time and the first call's, for a row's details."""
    return {"min": times["min"] * scale, "max": times["max"] * scale, "first_s": round(times["first"], 2)}


def random_tree(shapes: Any, seed: int = 0) -> Any:
    """Make parameters of these shapes and dtypes on the default device: kernels and embeddings small, vectors one.

    Values repeat after a million, so that the host neither draws billions of numbers nor compiles programs that do.
    """
    import jax
    import numpy as np

    rng = np.random.default_rng(seed)
    normal = 0.02 * rng.standard_normal(1_000_003, np.float32)
    integers = rng.integers(-128, 128, 1_000_003, np.int64)

    def make(leaf: Any) -> jax.Array:
        dtype = np.dtype(leaf.dtype)
        if np.issubdtype(dtype, np.integer):
            values = np.resize(integers.astype(dtype), leaf.shape)
        elif len(leaf.shape) < 2:
            values = np.ones(leaf.shape, dtype)
        else:
            values = np.resize(normal.astype(dtype), leaf.shape)
        return jax.device_put(values)

    return jax.block_until_ready(jax.tree.map(make, shapes))


def torch_device(threads: int) -> Any:
    """Return PyTorch's device for the measurement, with its threads set."""
    import torch

    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_timed(call: Callable[[], Any]) -> Callable[[], None]:
    """Make a call wait for the GPU."""
    import torch

    def waiting() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return waiting
