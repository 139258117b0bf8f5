"""Multi-host start-up: detect the launcher from the environment and initialize `jax.distributed`."""

import http.client
import importlib.util
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
from typing import Any, NoReturn

import jax

from seed_jax.errors import UserError

METADATA_TIMEOUT_SECONDS = 10
LEAVE_LAST_SECONDS = 3.0  # how much longer than the others the coordinator lives when all of them fail
_OPENER_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def initialize() -> None:
    """Connect to the other hosts of a pod or cluster; does nothing on a single host.

    Must run before any backend is initialized. Recognized, in this order: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, set by hand; tasks of Slurm's `srun`; TPU hosts on GKE, described by environment variables;
    Cloud TPU VMs, described by their metadata server. On TPUs for one slice or several.

    Raises:
        UserError: the description of the job is incomplete.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        _initialize_from_jax_variables()
    elif _slurm_tasks() > 1:
        jax.distributed.initialize(local_device_ids=_slurm_devices())
    elif _tpu_hosts() > 1:
        jax.distributed.initialize()


def _initialize_from_jax_variables() -> None:
    missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in os.environ]
    if missing:
        raise UserError(f"JAX_COORDINATOR_ADDRESS is set but {' and '.join(missing)} is not: set all three.")
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        int(os.environ["JAX_NUM_PROCESSES"]),
        int(os.environ["JAX_PROCESS_ID"]),
    )


def _slurm_tasks() -> int:
    """Return the number of tasks in this process's `srun` step; 1 outside Slurm."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    allocated = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks == 1 < allocated:
        # A batch script or an interactive shell: running here would leave all but one of the allocated tasks idle.
        raise UserError(
            f"SLURM_NTASKS is {allocated} but this process is not one of {allocated} tasks of srun: start it with "
            "`srun python -m seed_jax.main ...`, or unset SLURM_NTASKS to train in this process alone."
        )
    return tasks


def _slurm_devices() -> list[int] | None:
    """Return all GPUs of the node for the only task on a node; else None, where JAX gives each task one GPU."""
    one_task_per_node = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if not one_task_per_node or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    return list(range(count)) or None


def _tpu_hosts() -> int:
    """Return the number of hosts of this TPU slice times the number of slices; 1 without a TPU."""
    workers = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")  # GKE
    slices = os.environ.get("MEGASCALE_NUM_SLICES")
    # Importing jax sets TPU_SKIP_MDS_QUERY on machines without a TPU chip; GKE and Colab set it themselves.
    if workers is None and "TPU_SKIP_MDS_QUERY" not in os.environ and importlib.util.find_spec("libtpu"):
        workers = _read_metadata("worker-network-endpoints")
        match = re.search(r"^MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _read_metadata("tpu-env"), re.MULTILINE)
        slices = slices or (match and match[1])
    return len((workers or "").split(",")) * int(slices or 1)


def _read_metadata(attribute: str) -> str:
    """Read an attribute from a Cloud TPU VM's metadata server; "" if there is no server or no such attribute."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{attribute}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with _OPENER_WITHOUT_PROXY.open(request, timeout=METADATA_TIMEOUT_SECONDS) as response:
            return response.read().decode()
    except urllib.error.HTTPError:
        return ""
    except (OSError, http.client.HTTPException) as error:
        logging.warning("The TPU metadata server does not respond (%s): assuming a single host.", error)
        return ""


def coordination_client() -> Any:
    """Return the client of the coordination service that the hosts of a run share; None on a single host."""
    from jax._src import distributed  # JAX has no public way to it; Orbax uses the same

    return distributed.global_state.client


def coordinator_address() -> str:
    """Return the address at which host 0 coordinates the others; "" on a single host."""
    from jax._src import distributed  # as above

    return distributed.global_state.coordinator_address or ""


def _is_coordinator() -> bool:
    from jax._src import distributed  # as above; jax.process_index() could start a backend

    return distributed.global_state.process_id == 0


def exit_process(code: int) -> NoReturn:
    """End this process; in a multi-host run at once, since an ordinary exit would wait minutes for the others."""
    if coordination_client() is None:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if _is_coordinator():
        time.sleep(LEAVE_LAST_SECONDS)  # JAX aborts the others once the coordinator is gone, before they say why
    os._exit(code)
