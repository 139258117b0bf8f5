"""Programs are compiled once per machine and kind of processor; whoever sets JAX's variables has the last word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seed_jax.startup import compilation_cache

CPUINFO = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t: 143\ncpu MHz\t: {mhz}\nflags\t: {flags}\n\nprocessor\t: 1\n"
)
PROGRAM = """
import sys
from seed_jax.startup import compilation_cache
arguments = compilation_cache.configure(sys.argv[1:])
import jax, jax.numpy as jnp
jax.jit(lambda x: jnp.linalg.qr(x @ x)[0])(jnp.ones((64, 64)))
print(arguments)
"""


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No variable of the cache is set, and the user's cache directory is a fresh one."""
    for name in [name for name in os.environ if "CACHE" in name and name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def entries(tmp_path):
    return sorted(path.name for path in tmp_path.rglob("*-cache"))


def test_a_second_process_finds_the_first_ones_programs(unset, tmp_path):
    unset.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    assert run("generate") == "['generate']"
    first = entries(tmp_path)
    assert first
    run("generate")
    assert entries(tmp_path) == first


def test_no_cache_is_taken_out_of_the_arguments_and_nothing_is_stored(unset, tmp_path):
    assert run("generate", "--no-cache", "--", "--no-cache") == "['generate', '--', '--no-cache']"
    assert not entries(tmp_path)


def test_each_kind_of_processor_has_its_own_directory(tmp_path):
    def key(name, **fields):
        (tmp_path / name).write_text(CPUINFO.format(**fields))
        return compilation_cache.processor_key(tmp_path / name)

    wide, narrow = key("a", mhz=2000, flags="avx2 avx512f"), key("b", mhz=2000, flags="avx2")
    assert wide != narrow
    assert wide == key("c", mhz=3100.5, flags="avx2 avx512f")
    assert compilation_cache.processor_key(tmp_path / "missing")


def test_a_directory_that_cannot_be_made_is_a_warning(unset, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    compilation_cache.enable()
    assert "cannot be written" in caplog.text
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_users_directory_stays(unset, tmp_path):
    unset.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    compilation_cache.enable()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "mine")
    assert not Path(tmp_path / "cache").exists()


def test_no_cache_is_accepted_anywhere_and_what_compiles_nothing_makes_no_directory(unset, tmp_path):
    for words in ("fetch --list --no-cache", "--no-cache fetch --list", "fetch --list", "--print-completion bash"):
        subprocess.run([sys.executable, "-m", "seed_jax.cli", *words.split()], capture_output=True, check=True)
    assert not (tmp_path / "cache").exists()
