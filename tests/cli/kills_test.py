"""Commands that are killed at random moments write what uninterrupted ones write."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_commands_write_what_uninterrupted_ones_write():
    """`train` and `data build` have tests of their own; `.ci/weekly kills` kills each command 20 times."""
    command = [sys.executable, "benchmarks/random_kills.py", "--kills", "2", "tokenize", "generate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(" | ")[1] for line in done.stdout.splitlines()[-2:]] == ["2", "2"]
