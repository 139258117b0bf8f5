"""Detection of the launcher from the environment: `jax.distributed` is initialized if there are several processes."""

import contextlib
import http.server
import os
import threading

import jax
import pytest

from seed_jax import distributed
from seed_jax.errors import UserError

# What `srun` sets for every task; the numbers are those of 2 nodes.
TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TASK_PER_GPU = {**TASK, "SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
TASK_PER_NODE = {**TASK, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
GKE = {"TPU_WORKER_ID": "0", "TPU_SKIP_MDS_QUERY": "true"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "0",
    "MEGASCALE_COORDINATOR_ADDRESS": "seed-slice-0-0.seed",
}
LAUNCHER_PREFIXES = ("JAX_", "SLURM_", "TPU_", "MEGASCALE_", "CUDA_VISIBLE", "GCE_")


@pytest.fixture
def initialize_call(monkeypatch):
    """Return a function: environment -> arguments of the call of `jax.distributed.initialize`, or None."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))

    def initialize(environment):
        for name in [name for name in os.environ if name.startswith(LAUNCHER_PREFIXES)]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        distributed.initialize()
        assert len(calls) <= 1
        return calls[0] if calls else None

    return initialize


@contextlib.contextmanager
def metadata_server(attributes):
    """Serve attributes like a Cloud TPU VM's metadata server; yield its address."""

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
        {"TPU_SKIP_MDS_QUERY": "1"},  # no TPU: set by importing jax
        {**GKE, "TPU_WORKER_HOSTNAMES": "localhost"},
        {**TASK, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "TPU_SKIP_MDS_QUERY": "1"},
    ],
    ids=["laptop", "one TPU host", "one Slurm task"],
)
def test_a_single_host_does_not_initialize(initialize_call, environment):
    assert initialize_call(environment) is None


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
def test_tpu_hosts_on_gke_initialize(initialize_call, environment):
    assert initialize_call(environment) == ((), {})


@pytest.mark.parametrize(
    ("attributes", "initializes"),
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
def test_cloud_tpu_vms_query_their_metadata_server(initialize_call, monkeypatch, attributes, initializes):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    with metadata_server(attributes) as address:
        assert (
            initialize_call({"GCE_METADATA_IP": address, "http_proxy": "http://127.0.0.1:1"}) is not None
        ) == initializes


def test_an_unresponsive_metadata_server_means_a_single_host_and_is_logged(initialize_call, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    assert initialize_call({"GCE_METADATA_IP": "127.0.0.1:1"}) is None
    assert "metadata server" in caplog.text


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        (TASK_PER_GPU, None),  # JAX gives each task one GPU
        ({**TASK_PER_NODE, "SLURM_GPUS_ON_NODE": "8"}, list(range(8))),
        ({**TASK_PER_NODE, "SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "4,5"}, [0, 1]),
        ({**TASK_PER_NODE, "SLURM_GPUS_ON_NODE": "8", "JAX_LOCAL_DEVICE_IDS": "0,1"}, None),
        (TASK_PER_NODE, None),
    ],
    ids=["task per GPU", "task per node", "some GPUs visible", "set explicitly", "CPU nodes"],
)
def test_slurm_tasks_initialize_with_their_gpus(initialize_call, environment, devices):
    assert initialize_call(environment) == ((), {"local_device_ids": devices})


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_NUM_TASKS": "1"}], ids=["batch script", "interactive step"])
def test_a_process_that_srun_did_not_start_is_refused(initialize_call, step):
    with pytest.raises(UserError, match="SLURM_NTASKS is 8 but this process is not one of 8 tasks of srun"):
        initialize_call({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", **step})


def test_explicit_jax_variables_take_precedence(initialize_call):
    explicit = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert initialize_call({**TASK_PER_GPU, **explicit}) == (("10.0.0.1:1234", 4, 3), {})


def test_a_missing_variable_is_named(initialize_call):
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is not: set all three"):
        initialize_call({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_PROCESS_ID": "3"})
