"""The environment tells what started this process; JAX is asked to join the others exactly when there are others."""

import contextlib
import http.server
import os
import threading

import jax
import pytest

from seed_jax import distributed
from seed_jax.errors import UserError

# What `srun` gives every task; the numbers are those of 2 nodes.
TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TASK_PER_GPU = {**TASK, "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
TASK_PER_NODE = {**TASK, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
GKE = {"TPU_WORKER_ID": "0", "TPU_SKIP_MDS_QUERY": "true"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "0",
    "MEGASCALE_COORDINATOR_ADDRESS": "seed-slice-0-0.seed",
}
FOREIGN = ("JAX_", "SLURM_", "TPU_", "MEGASCALE_", "CUDA_VISIBLE", "GCE_")


@pytest.fixture
def joined(monkeypatch):
    """Return a function: under this environment alone, return with what arguments JAX is asked to join (or None)."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))

    def initialize(environment):
        for name in [name for name in os.environ if name.startswith(FOREIGN)]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        distributed.initialize()
        assert len(calls) <= 1
        return calls[0] if calls else None

    return initialize


@contextlib.contextmanager
def metadata_server(attributes):
    """Serve attributes as a Cloud TPU VM's metadata server does; yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            known = name in attributes and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "").encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "environment",
    [
        {"TPU_SKIP_MDS_QUERY": "1"},  # no TPU: importing jax sets it
        {**GKE, "TPU_WORKER_HOSTNAMES": "localhost"},
        {**TASK, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "TPU_SKIP_MDS_QUERY": "1"},
    ],
    ids=["laptop", "one TPU host", "one Slurm task"],
)
def test_a_single_host_joins_nobody(joined, environment):
    assert joined(environment) is None


@pytest.mark.parametrize(
    "environment",
    [
        {**GKE, "TPU_WORKER_HOSTNAMES": "a,b,c,d"},
        {**GKE, "TPU_PROCESS_ADDRESSES": "a:8476,b:8476"},
        {**GKE, "TPU_WORKER_HOSTNAMES": "a,b", **SLICES},
        {**GKE, "TPU_WORKER_HOSTNAMES": "a", **SLICES},
    ],
    ids=["slice", "slice by process addresses", "slices of several hosts", "slices of one host"],
)
def test_tpu_hosts_on_gke_join(joined, environment):
    assert joined(environment) == ((), {})


@pytest.mark.parametrize(
    ("attributes", "joins"),
    [
        ({"worker-network-endpoints": "unused:unused:10.0.0.1", "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'"}, False),
        ({"worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2", "tpu-env": "WORKER_ID: '0'"}, True),
        (
            {"worker-network-endpoints": "t-w-0", "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nWORKER_ID: '0'"},
            True,
        ),
        ({}, False),
    ],
    ids=["one host", "slice", "slices of one host", "not a TPU VM"],
)
def test_cloud_tpu_vms_ask_their_metadata_server(joined, monkeypatch, attributes, joins):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    with metadata_server(attributes) as address:
        assert (joined({"GCE_METADATA_IP": address, "http_proxy": "http://127.0.0.1:1"}) is not None) == joins


def test_a_silent_metadata_server_means_a_single_host_and_is_told(joined, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    assert joined({"GCE_METADATA_IP": "127.0.0.1:1"}) is None
    assert "metadata server" in caplog.text


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        (TASK_PER_GPU, None),  # JAX gives each task the GPU of its number
        ({**TASK_PER_NODE, "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
        ({**TASK_PER_NODE, "SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "4,5"}, [0, 1]),
        ({**TASK_PER_NODE, "SLURM_GPUS_ON_NODE": "8", "JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
        (TASK_PER_NODE, None),
    ],
    ids=["task per GPU", "task per node", "some GPUs visible", "chosen by hand", "CPU nodes"],
)
def test_slurm_tasks_join_with_their_gpus(joined, environment, devices):
    assert joined(environment) == ((), {"local_device_ids": devices})


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_NUM_TASKS": "1"}], ids=["batch script", "interactive step"])
def test_a_process_that_srun_did_not_start_is_refused(joined, step):
    with pytest.raises(UserError, match="SLURM_NTASKS is 8 but this process is not one of 8 tasks of srun"):
        joined({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", **step})


def test_hosts_named_by_hand_win(joined):
    by_hand = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert joined({**TASK_PER_GPU, **by_hand}) == (("10.0.0.1:1234", 4, 3), {})


def test_a_missing_part_is_named(joined):
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is not: set all three"):
        joined({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_PROCESS_ID": "3"})
