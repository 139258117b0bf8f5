"""An installed TPU library is left alone on machines without TPUs."""

import importlib.machinery
import importlib.util
import os

import pytest

from seed_jax.startup import backends


@pytest.fixture
def libtpu(monkeypatch):
    """Pretend that libtpu is installed and nothing is set."""
    found = importlib.machinery.ModuleSpec("libtpu", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    for name in ("JAX_PLATFORMS", "TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_devices_only_the_cpu_is_used(libtpu, tmp_path):
    backends.skip_absent_tpus(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("device", ["accel0", "vfio/0", "nvidia0"])
def test_devices_leave_the_choice_to_jax(libtpu, tmp_path, device):
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    backends.skip_absent_tpus(tmp_path)
    assert "JAX_PLATFORMS" not in os.environ


def test_a_tpu_environment_or_the_users_choice_decides(libtpu, tmp_path):
    libtpu.setenv("TPU_WORKER_ID", "0")
    backends.skip_absent_tpus(tmp_path)
    assert "JAX_PLATFORMS" not in os.environ
    libtpu.delenv("TPU_WORKER_ID")
    libtpu.setenv("JAX_PLATFORMS", "tpu,cpu")
    backends.skip_absent_tpus(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "tpu,cpu"
