"""Start-up on several hosts: tell what started this process, and join the others."""

import http.client
import importlib.util
import logging
import os
import re
import sys
import urllib.error
import urllib.request
from typing import Any, NoReturn

import jax

from seed_jax.errors import UserError

METADATA_SECONDS = 10
_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def initialize() -> None:
    """Join the other hosts of a pod or cluster; does nothing on a single host.

    Must run before any backend is touched. Recognised, in this order: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, set by hand; tasks of Slurm's `srun`; TPU hosts on GKE, which the environment describes; Cloud TPU
    VMs, which ask their metadata server. On TPUs one slice or several.

    Raises:
        UserError: a part of the description is missing.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        _initialize_by_hand()
    elif _slurm_tasks() > 1:
        jax.distributed.initialize(local_device_ids=_slurm_devices())
    elif _tpu_hosts() > 1:
        jax.distributed.initialize()


def _initialize_by_hand() -> None:
    missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in os.environ]
    if missing:
        raise UserError(f"JAX_COORDINATOR_ADDRESS is set but {' and '.join(missing)} is not: set all three.")
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        int(os.environ["JAX_NUM_PROCESSES"]),
        int(os.environ["JAX_PROCESS_ID"]),
    )


def _slurm_tasks() -> int:
    """Count the tasks that `srun` started together with this one."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    allocated = int(os.environ.get("SLURM_NTASKS", 1))
    if tasks == 1 < allocated:
        # In a batch script or an interactive shell: alone, it would leave all but one of the allocated tasks idle.
        raise UserError(
            f"SLURM_NTASKS is {allocated} but this process is not one of {allocated} tasks of srun: start it with "
            "`srun python -m seed_jax.main ...`, or unset SLURM_NTASKS to train in this process alone."
        )
    return tasks


def _slurm_devices() -> list[int] | None:
    """Return all GPUs of the node for a task that has the node to itself; else None: JAX gives each task one."""
    alone = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if not alone or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    return list(range(count)) or None


def _tpu_hosts() -> int:
    """Count the hosts of this TPU slice, times the slices; 1 without a TPU."""
    workers = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")  # GKE
    slices = os.environ.get("MEGASCALE_NUM_SLICES")
    # Importing jax sets TPU_SKIP_MDS_QUERY where the machine has no TPU chip; GKE and Colab set it themselves.
    if workers is None and "TPU_SKIP_MDS_QUERY" not in os.environ and importlib.util.find_spec("libtpu"):
        workers = _metadata("worker-network-endpoints")
        found = re.search(r"^MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _metadata("tpu-env"), re.MULTILINE)
        slices = slices or (found and found[1])
    return len((workers or "").split(",")) * int(slices or 1)


def _metadata(attribute: str) -> str:
    """Ask a Cloud TPU VM's metadata server; "" where there is none or it does not know."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{attribute}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with _WITHOUT_PROXY.open(request, timeout=METADATA_SECONDS) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError:
        return ""
    except (OSError, http.client.HTTPException) as error:
        logging.warning("The metadata server of this TPU does not answer (%s): taking it for a single host.", error)
        return ""


def client() -> Any:
    """Return the client of the service that the hosts of a run share; None on a single host."""
    from jax._src import distributed  # JAX has no public way to it; Orbax takes the same

    return distributed.global_state.client


def coordinator() -> str:
    """Return the address at which host 0 coordinates the others; "" on a single host."""
    from jax._src import distributed  # as above

    return distributed.global_state.coordinator_address or ""


def leave(code: int) -> NoReturn:
    """End this process; on several hosts at once, since an ordinary exit would wait minutes for the others."""
    if client() is None:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
