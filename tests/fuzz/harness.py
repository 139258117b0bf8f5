"""Run readers on mutated files in child processes, and report everything but a result or a UserError.

    python -m tests.fuzz.harness [--reader NAME]... [--count 2000] [--first 0] [--workers 2]

An input is known by its reader and its number: `--reader parquet --first 123 --count 1` repeats one. A failure is an
exception other than UserError, more than 1 GiB of memory above that of the idle process, 10 seconds of processor time,
or the end of the process. Prints one line of a Markdown table per reader, then the failures.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import gc
import json
import logging
import multiprocessing.pool
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 10  # of processor time for one input
LIMIT_BYTES = 2**30  # of address space for one input, beyond that of the process which has read all seeds
COMMAND = [sys.executable, "-m", "tests.fuzz.harness"]  # starts a child process
ROOT = Path(__file__).parents[2]
_WAIT_SECONDS = 300  # for an input that uses no processor time because it waits, and for the start of a process


@dataclasses.dataclass(frozen=True)
class Failure:
    """An input that did not end in a result or a UserError."""

    reader: str
    number: int
    problem: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What a reader did with its inputs; `peak_bytes` is the largest resident size of the process until then."""

    reader: str
    inputs: int
    refused: int
    seconds: float
    peak_bytes: int


def try_input(reader: Any, seeds: Sequence[Path], contents: Sequence[bytes], number: int) -> tuple[bool, str | None]:
    """Read one mutated file.

    Args:
        reader: a `Reader`.
        seeds: the files that it may mutate.
        contents: what these files hold.
        number: of the input: determines the seed and the mutation.

    Returns:
        Whether the input was refused by a UserError, and the traceback of any other exception.
    """
    from seed_jax.errors import UserError

    rng = random.Random(f"{reader.name}:{number}")
    chosen = rng.randrange(len(seeds))
    path, content = seeds[chosen], contents[chosen]
    path.write_bytes(reader.mutate(content, rng, contents))
    try:
        reader.read(path)
    except UserError:
        return True, None
    except Exception:
        return False, "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
    finally:
        path.write_bytes(content)
    return False, None


def prepare(reader: Any, folder: Path) -> tuple[list[Path], list[bytes]]:
    """Write a reader's seeds and read each of them; return their paths and contents."""
    folder.mkdir(parents=True)
    seeds = reader.seeds(folder)
    for path in seeds:
        reader.read(path)
    return seeds, [path.read_bytes() for path in seeds]


def run(names: Sequence[str], count: int, first: int = 0, workers: int = 2) -> tuple[list[Result], list[Failure]]:
    """Run `count` inputs of each reader in child processes."""
    with multiprocessing.pool.ThreadPool(workers) as pool:
        shares = [names[worker::workers] for worker in range(workers)]
        parts = pool.map(lambda share: _run_share(share, count, first), filter(None, shares))
    return [result for results, _ in parts for result in results], [f for _, failures in parts for f in failures]


def _run_share(names: Sequence[str], count: int, first: int) -> tuple[list[Result], list[Failure]]:
    """Run readers in one child process after another: a new one where an input ended the last."""
    results: list[Result] = []
    failures: list[Failure] = []
    todo = [(name, first) for name in names]
    while todo:
        messages, code = _run_child(todo, first + count)
        position = (todo[0][0], todo[0][1] - 1)
        for kind, *values in messages:
            if kind == "at":
                position = (values[0], values[1])
            elif kind == "result":
                results.append(Result(*values))
                todo = [entry for entry in todo if entry[0] != values[0]]
            else:
                failures.append(Failure(*values))
        if todo and code:
            name, number = position
            reason = (
                f"more than {LIMIT_SECONDS} s of processor time" if code == -signal.SIGPROF else f"exit code {code}"
            )
            failures.append(Failure(name, number, f"the process ended: {reason}"))
            todo = [(name, number + 1), *(entry for entry in todo if entry[0] != name)]
            if number + 1 >= first + count:
                todo = todo[1:]
    return results, failures


def _run_child(todo: Sequence[tuple[str, int]], stop: int) -> tuple[list[list[Any]], int]:
    """Return the messages of a child process and its exit code."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        log, errors = Path(folder, "log"), Path(folder, "errors")
        command = [*COMMAND, "--child", folder, json.dumps(todo), str(stop)]
        with errors.open("w") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stderr, stderr=stderr)
            size, since = -1, time.monotonic()
            while process.poll() is None:
                time.sleep(0.2)
                with contextlib.suppress(FileNotFoundError):
                    if log.stat().st_size != size:
                        size, since = log.stat().st_size, time.monotonic()
                if time.monotonic() - since > _WAIT_SECONDS:
                    process.kill()
        messages = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if process.returncode and not messages:
            raise RuntimeError(f"a process ended with {process.returncode}: {errors.read_text()[-2000:]}")
        return messages, process.returncode


def _child(folder: Path, todo: Sequence[tuple[str, int]], stop: int) -> None:
    """Read the inputs of several readers, and append to the file `log` what happens."""
    from tests.fuzz.readers import READERS

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    faulthandler.enable()
    readers = {reader.name: reader for reader in READERS}
    with (folder / "log").open("w", buffering=1) as log:

        def tell(*message: Any) -> None:
            log.write(json.dumps(message) + "\n")

        for name, first in todo:
            reader = readers[name]
            try:
                seeds, contents = prepare(reader, folder / "files" / name.replace(" ", "_"))
            except Exception:
                tell("failure", name, -1, f"a seed cannot be read:\n{traceback.format_exc()}")
                tell("result", name, 0, 0, 0.0, 0)
                continue
            gc.collect()
            _limit_memory()
            started, refused = time.process_time(), 0
            for number in range(first, stop):
                tell("at", name, number)
                signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
                was_refused, problem = try_input(reader, seeds, contents, number)
                signal.setitimer(signal.ITIMER_PROF, 0)
                refused += was_refused
                if problem is not None:
                    tell("failure", name, number, problem)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            tell("result", name, stop - first, refused, time.process_time() - started, peak)
            shutil.rmtree(folder / "files" / name.replace(" ", "_"), ignore_errors=True)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def table(results: Iterable[Result]) -> str:
    """Return a Markdown table of results."""
    rows = [
        f"| {result.reader} | {result.inputs:,} | {result.refused:,} | {result.seconds:.0f} | "
        f"{result.peak_bytes / 2**20:.0f} |"
        for result in sorted(results, key=lambda result: result.reader)
    ]
    head = "| reader | inputs | refused | processor seconds | peak MiB of the process |\n|---|---:|---:|---:|---:|"
    return "\n".join([head, *rows])


def main() -> int:
    """Run the command line."""
    if sys.argv[1:2] == ["--child"]:
        folder, todo, stop = sys.argv[2:]
        _child(Path(folder), json.loads(todo), int(stop))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", help="name of a reader; may be repeated; default: all")
    parser.add_argument("--count", type=int, default=2000, help="inputs of each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    from tests.fuzz.readers import READERS

    names = args.reader or [reader.name for reader in READERS]
    results, failures = run(names, args.count, args.first, args.workers)
    print(table(results))
    print(f"\n{sum(result.inputs for result in results):,} inputs, {len(failures)} failures")
    for failure in failures:
        print(f"\n== {failure.reader} {failure.number}\n{failure.problem}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
