"""Traps are seen where they are, and nowhere else."""

import os

import pytest

from seed_jax.doctor.traps import find_traps, tpu_holder

CPU = {"count": 1, "platform": "cpu"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A file system without accelerators, and an environment without variables that matter."""
    for name in ("JAX_PLATFORMS", "XLA_FLAGS", "LD_LIBRARY_PATH", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_ENABLE_X64"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    return tmp_path


def test_a_plain_machine_has_none(root):
    assert find_traps(CPU, root) == []


def test_an_unused_gpu_is_named(root, monkeypatch):
    (root / "dev/nvidia0").touch()
    assert any("NVIDIA GPU" in trap and "seed-jax[cuda]" in trap for trap in find_traps(CPU, root))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert any("JAX_PLATFORMS=cpu hides this machine's GPU" in trap for trap in find_traps(CPU, root))
    assert not any("GPU" in trap for trap in find_traps({"count": 1, "platform": "gpu"}, root))


def test_an_unused_tpu_is_named(root):
    (root / "dev/vfio/0").touch()
    assert any("There is a TPU" in trap for trap in find_traps(CPU, root))


def test_the_process_that_holds_the_tpu_is_named(root):
    for number, target in (("11", "/dev/null"), ("12", "/dev/vfio/0"), (str(os.getpid()), "/dev/accel0")):
        (root / f"proc/{number}/fd").mkdir(parents=True)
        (root / f"proc/{number}/fd/3").symlink_to(target)
        (root / f"proc/{number}/comm").write_text("jupyter\n")
    assert tpu_holder(root) == "12 (jupyter)"
    assert any("12 (jupyter)" in trap for trap in find_traps(CPU, root))


def test_a_backend_that_does_not_start_is_explained(root, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    error = {"count": 0, "error": "Unable to initialize backend 'tpu'"}
    assert any("JAX_PLATFORMS=tpu" in trap for trap in find_traps(error, root))
    in_use = {"count": 0, "error": "The TPU is already in use by process with pid 7"}
    assert any("in use" in trap for trap in find_traps(in_use, root))


def test_variables_that_slow_everything_down_are_named(root, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_JIT", "1")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert len(find_traps(CPU, root)) == 2
