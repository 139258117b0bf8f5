"""Damaged and hostile files of every format: a result or a UserError, and no other exception, crash, hang or bomb."""

import json
import os
import subprocess
import sys

import pytest

from seed_jax.data.sources import SOURCES
from tests.fuzz import bombs, harness
from tests.fuzz.readers import READERS

FEW = 12  # inputs of each reader in the default lane
MANY = int(os.environ.get("SEED_JAX_FUZZ", "2000"))  # in the slow lane


@pytest.mark.filterwarnings("ignore")  # of the decoders
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_read_or_refused(reader, tmp_path):
    seeds, contents = harness.prepare(reader, tmp_path / "files")
    for number in range(FEW):
        _, problem = harness.try_input(reader, seeds, contents, number)
        assert problem is None, f"input {number}: {problem}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_damaged_files_in_child_processes():
    results, failures = harness.run([reader.name for reader in READERS], MANY)
    print(harness.table(results))
    assert not failures, "\n".join(f"{failure.reader} {failure.number}: {failure.problem}" for failure in failures[:20])
    assert [result.inputs for result in results] == [MANY] * len(READERS)
    assert sum(result.refused for result in results) > len(READERS) * MANY / 10  # the mutations are no trifles


def test_every_source_is_fuzzed():
    # tensorflow-datasets checks its own files.
    assert {reader.kind for reader in READERS} - {None} == set(SOURCES) - {"tfds"}


@pytest.mark.slow
def test_the_harness_notices_exceptions_memory_hangs_and_crashes(tmp_path, monkeypatch):
    """The four ways to fail, as readers of a file in another process."""
    program = tmp_path / "failing.py"
    program.write_text(
        """
import os, sys
from pathlib import Path
from tests.fuzz import harness, readers

def seeds(folder):
    (folder / "a").write_bytes(b"a")
    return [folder / "a"]

def read(action):
    return lambda path: action() if path.read_bytes() != b"a" else None

def spin():
    while True:
        pass

ACTIONS = {
    "raises": lambda: 1 / 0, "allocates": lambda: bytearray(2 << 30), "hangs": spin, "ends": lambda: os._exit(3)
}
readers.READERS[:] = [
    readers.Reader(name, seeds, read(action), lambda data, rng, others: b"b") for name, action in ACTIONS.items()
]
harness.LIMIT_SECONDS = 1
sys.argv[0] = "harness"
sys.exit(harness.main())
"""
    )
    monkeypatch.setattr(harness, "COMMAND", [sys.executable, str(program)])
    _, failures = harness.run(["raises", "allocates", "hangs", "ends"], 1, workers=1)
    problems = {failure.reader: failure.problem for failure in failures}
    assert "ZeroDivisionError" in problems["raises"]
    assert "MemoryError" in problems["allocates"]
    assert "processor time" in problems["hangs"]
    assert "exit code 3" in problems["ends"]


@pytest.mark.slow
@pytest.mark.parametrize("name", bombs.BOMBS)
def test_small_files_that_expand_take_less_than_a_gibibyte(name, tmp_path):
    results = []
    for action in ("make", "read"):
        command = [sys.executable, "-m", "tests.fuzz.bombs", action, name, str(tmp_path)]
        process = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr[-2000:]
        results.append(process.stdout)
    taken, seconds, message = json.loads(results[1].splitlines()[-1])
    size = (tmp_path / name).stat().st_size
    print(f"{name}: {size:,} bytes on disk, {taken / 2**20:.0f} MiB, {seconds:.1f} s: {message[:100]}")
    assert taken < 2**30
    assert seconds < 60
