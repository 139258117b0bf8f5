"""A training or a server on a CPU starts again with huge pages, once, and only where they help."""

import os
import platform
import subprocess
import sys

import pytest

from seed_jax import cli
from seed_jax.startup import huge_pages


@pytest.fixture
def restarts(monkeypatch):
    """Pretend that this is a machine on which huge pages help; return the restarts."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(huge_pages, "is_useful", lambda: True)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_the_same_command_starts_again(restarts, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "-m", "seed_jax.main", "--config=a b"])
    huge_pages.restart_with_huge_pages()
    (path, command, environment) = restarts[0]
    assert path == sys.executable
    assert command == [sys.executable, "-X", "utf8", "-m", "seed_jax.main", "--config=a b"]
    assert environment == {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize("value", ["", "glibc.malloc.hugetlb=1", "glibc.malloc.check=3"])
def test_a_restarted_process_and_the_users_choice_are_left_alone(restarts, monkeypatch, value):
    monkeypatch.setenv("GLIBC_TUNABLES", value)
    huge_pages.restart_with_huge_pages()
    assert not restarts


@pytest.mark.parametrize(("command", "count"), [("train", 1), ("serve", 1), ("generate", 0)])
def test_commands_that_run_for_long_start_again(restarts, monkeypatch, capsys, command, count):
    monkeypatch.setattr(sys, "argv", ["seed-jax", command])  # whose required arguments are missing
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert f"seed-jax {command}: error" in capsys.readouterr().err
    assert len(restarts) == count


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A Linux machine with glibc, huge pages on request, and no accelerator."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.setenv("JAX_PLATFORMS", "")
    for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    return {"devices": tmp_path, "setting": setting}


def test_a_cpu_with_glibc_is_one_where_they_help(machine):
    assert huge_pages.is_useful(**machine)


@pytest.mark.parametrize("library", [("", ""), ("glibc", "2.34"), ("glibc", "2.5")])
def test_other_c_libraries(machine, monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    assert not huge_pages.is_useful(**machine)


def test_the_kernel_may_forbid_them_or_not_know_them(machine):
    machine["setting"].write_text("always madvise [never]\n")
    assert not huge_pages.is_useful(**machine)
    machine["setting"].unlink()
    assert not huge_pages.is_useful(**machine)


def test_accelerators(machine, monkeypatch):
    (machine["devices"] / "nvidia0").touch()
    assert not huge_pages.is_useful(**machine)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert huge_pages.is_useful(**machine)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert not huge_pages.is_useful(**machine)


def test_a_training_command_runs_with_them(tmp_path):
    """Arguments, working directory and output are those of the command, which ends as without them."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    config = tmp_path / "show.py"
    config.write_text("import os\n\ndef get_config(variant):\n    raise ValueError(os.environ.get('GLIBC_TUNABLES'))\n")
    for command in (["seed_jax.main", "--config=show.py:a b"], ["seed_jax.cli", "--no-cache", "train", "show.py:a b"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        expected = "glibc.malloc.hugetlb=1" if huge_pages.is_useful() else "None"
        assert expected in done.stderr
        assert done.returncode == 2
