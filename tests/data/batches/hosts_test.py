"""Several real processes, joined by jax.distributed on this machine: the same samples and the same shards as one."""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seed_jax.data.batches.packed import PackedBatches
from seed_jax.data.batches.record_stream import MixtureComponent, RecordStream
from seed_jax.data.build.build import build
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from tests.data.batches import mixtures
from tests.data.sources.samples import png, tar

ROOT = Path(__file__).parents[3]
ROWS, LENGTH, SEED, STEPS = 8, 96, 7, 14

TRAINER = """
import json, signal, sys
from pathlib import Path
import jax
from seed_jax import distributed
distributed.initialize()
from seed_jax.files import write_bytes
from seed_jax.train.runtime.checkpointing import merge_over_hosts
from tests.data.batches.hosts_test import ROWS, STEPS, mixture, packed, sample_ids

folder, last = Path(sys.argv[1]), int(sys.argv[2])
count, index = jax.process_count(), jax.process_index()
rows = range(index * ROWS // count, (index + 1) * ROWS // count)
iterator = iter(packed(folder, rows))
if (folder / "state.json").exists():
    iterator.set_state(json.loads((folder / "state.json").read_text()))
with (folder / f"log-{count}-{index}.jsonl").open("a") as log:
    while (step := iterator.get_state()["step"]) < STEPS:
        print(json.dumps({"step": step, "samples": sample_ids(next(iterator))}), file=log, flush=True)
        if step == last:
            signal.pause()  # until killed: the step is made, its position not yet saved
        state = merge_over_hosts(iterator.get_state())
        if index == 0 and step % 2:
            write_bytes(folder / "state.json", json.dumps(state).encode())
"""


def mixture(folder: Path) -> list[MixtureComponent]:
    return [
        MixtureComponent(folder / "one", mixtures.render, 3),
        MixtureComponent(folder / "two", mixtures.render_pieces, 1.5),
    ]


def packed(folder: Path, batch_indices=None) -> PackedBatches:
    return PackedBatches(
        RecordStream(mixture(folder), SEED),
        batch_size=ROWS,
        sequence_length=LENGTH,
        batch_indices=batch_indices,
        look_ahead=4,
    )


def sample_ids(batch) -> list[list[int]]:
    """Return each sample of a batch as its first token, its last, and its length."""
    found = []
    for tokens, ids in zip(batch["tokens"].tolist(), batch["segment_ids"].tolist(), strict=True):
        rows = [[t for t, i in zip(tokens, ids, strict=True) if i == segment] for segment in range(1, max(ids) + 1)]
        found += [[row[0], row[-1], len(row)] for row in rows]
    return found


def start(arguments: list[str], count: int) -> list[subprocess.Popen]:
    """Start `count` processes that find each other through jax.distributed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    plain = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)} if count > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**plain, **several, **({"JAX_PROCESS_ID": str(index)} if several else {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def wait_for(condition, processes, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() in (None, 0), process.communicate()[1][-2000:]
        assert time.monotonic() < deadline, "the processes do not get on"
        time.sleep(0.01)


def kill(processes) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


def finish(processes) -> None:
    for process in processes:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error[-2000:]


def logged(folder: Path, count: int, index: int) -> list[dict]:
    path = folder / f"log-{count}-{index}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def has_step(folder: Path, count: int, index: int, step: int) -> bool:
    return any(row["step"] == step for row in logged(folder, count, index))


@pytest.mark.slow
def test_killed_and_resumed_on_one_two_and_four_processes(tmp_path):
    """In every global step the same multiset of samples: none lost, none twice, whoever makes it."""
    mixtures.write(tmp_path / "one", map(mixtures.captioned, range(50)))
    mixtures.write(tmp_path / "two", map(mixtures.captioned, range(100, 111)))
    killed = ((1, 5), (2, 9))  # so many processes, killed in this step; every second position is saved
    for count, last in killed:
        processes = start(["-c", TRAINER, str(tmp_path), str(last)], count)
        wait_for(lambda c=count, u=last: all(has_step(tmp_path, c, i, u) for i in range(c)), processes)
        kill(processes)
    finish(start(["-c", TRAINER, str(tmp_path), str(STEPS)], 4))
    iterator = iter(packed(tmp_path))
    expected = [collections.Counter(map(tuple, sample_ids(next(iterator)))) for _ in range(STEPS)]
    for count, steps in ((1, range(6)), (2, range(4, 10)), (4, range(8, STEPS))):  # from the last saved position on
        logs = [logged(tmp_path, count, index) for index in range(count)]
        assert [[row["step"] for row in log] for log in logs] == [list(steps)] * count
        for step, *rows in zip(steps, *logs, strict=True):
            assert collections.Counter(tuple(each) for row in rows for each in row["samples"]) == expected[step]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for name in range(3):
        members = {}
        for number in range(40):
            members |= {f"{number:03d}.png": png(number), f"{number:03d}.txt": f"Image {number}.".encode()}
        tar(folder / f"{name}.tar", members)
    return folder


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("lock"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_build_by_two_hosts_is_the_build_by_one(inputs, tmp_path):
    build(open_source("webdataset", [inputs]), tmp_path / "one", options=BuildOptions(shard_size=3, progress=False))
    command = ["-m", "seed_jax.cli", "data", "build", "--source", "webdataset", "--from", str(inputs)]
    command += ["--out", str(tmp_path / "two"), "--shard-size", "3"]
    processes = start(command, 2)
    wait_for(lambda: len([*(tmp_path / "two").glob("shard-*")]) > 4, processes)
    kill(processes)
    finish(start(command, 2))
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert len(open_shards(tmp_path / "two", verify=True)) == 120
    assert sorted(path.name for path in (tmp_path / "two/build").glob("lock-?-of-2")) == ["lock-0-of-2", "lock-1-of-2"]
