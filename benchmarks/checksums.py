"""Measure what verifying checksums adds to the time of loading a model, and what `seed-jax doctor DIR` takes.

    python benchmarks/checksums.py --gigabytes 2

A model directory and a training checkpoint of random float32 weights are written twice, with and without checksums, and
loaded in turns. The operating system holds the files in memory, so that the disk hides nothing. CPU seconds are of the
whole process: on a busy machine they tell more than the clock.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from seed_jax.checkpoint import lazy, model_dir
from seed_jax.checkpoint.verify import verify

LAYER = (1024, 1024)
LAYERS = 16


def weights(gigabytes: float) -> dict[str, lazy.LazyArray]:
    count = round(gigabytes * 1e9 / (4 * LAYERS * LAYER[0] * LAYER[1]))
    shape = (LAYERS, *LAYER)
    make = lambda number: lambda index: np.random.default_rng(number).standard_normal(shape, np.float32)[index]  # noqa: E731
    return {f"stack_{number}": lazy.LazyArray(shape, np.dtype(np.float32), make(number)) for number in range(count)}


def without_checksums(params: dict[str, lazy.LazyArray], path: Path, *, compressed: bool) -> None:
    """Write as earlier versions did: Zarr 2."""
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=False, use_compression=compressed)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = {name: np.asarray(leaf) for name, leaf in params.items()}
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree, save_args=lazy.save_args(tree)))


def with_checksums(params: dict[str, lazy.LazyArray], path: Path) -> None:
    """Write as a training checkpoint: uncompressed."""
    with ocp.Checkpointer(lazy.array_handler(use_compression=False)) as checkpointer:
        tree = {name: np.asarray(leaf) for name, leaf in params.items()}
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree, save_args=lazy.save_args(tree)))


def seconds(load: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(load())
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, loads: dict[str, Callable[[], object]], repeats: int) -> None:
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in loads}
    for repeat in range(repeats + 1):
        for kind, load in loads.items():
            took = seconds(load)
            if repeat:  # the first one fills the cache
                times[kind].append(took)
    for number, unit in enumerate(("wall", "CPU")):
        medians = {kind: statistics.median(took[number] for took in values) for kind, values in times.items()}
        least = {kind: min(took[number] for took in values) for kind, values in times.items()}
        change = 100 * (medians["with"] / medians["without"] - 1)
        print(
            f"{name}, {unit}: {medians['without']:.2f} s without, {medians['with']:.2f} s with checksums "
            f"({change:+.1f} %; least {least['without']:.2f} and {least['with']:.2f} s)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checksums_"))
    params = weights(args.gigabytes)
    try:
        for name in ("with", "without"):
            model_dir.save(folder / name, "llama", {"sizes": {}}, params if name == "with" else None)
        without_checksums(params, folder / "without/params", compressed=True)
        loads = {name: lambda name=name: model_dir.load(folder / name).params for name in ("without", "with")}
        compare("model directory", loads, args.repeats)
        took = seconds(lambda: verify(folder / "with"))
        print(f"seed-jax doctor: {took[0]:.2f} s wall, {took[1]:.2f} s CPU")
        for name in ("with", "without"):
            shutil.rmtree(folder / name)
        with_checksums(params, folder / "with")
        without_checksums(params, folder / "without", compressed=False)
        loads = {name: lambda name=name: model_dir.restore_params(folder / name) for name in ("without", "with")}
        compare("training checkpoint", loads, args.repeats)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
