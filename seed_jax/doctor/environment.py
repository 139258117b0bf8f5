"""Describe the machine: versions, what each extra lacks, devices, memory, disk, and whether the hub can be reached."""

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement

from seed_jax import accelerators
from seed_jax.hub.manifest import load_manifest

GIB = 2**30
DISTRIBUTION = "seed-jax"
CORE = "core"
DEVELOPMENT = ("test", "docs", "dev")  # extras that users do not need
NETWORK_TIMEOUT_S = 10.0


def packages() -> dict[str, dict[str, Any]]:
    """Compare the installed packages with the requirements of this package.

    Returns:
        "core" and each extra -> {"installed": name -> version, "missing": requirements, "unsupported": sentences}.
        Without metadata (a checkout that was not installed) empty.
    """
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
        extras = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {group: _group(requirements, "" if group == CORE else group) for group in (CORE, *extras)}


def _group(requirements: list[Requirement], extra: str) -> dict[str, Any]:
    """Compare the requirements that hold with an extra and not without it; "" is the core."""

    def holds(requirement: Requirement, name: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": name})

    installed, missing, unsupported = {}, [], []
    for requirement in requirements:
        if not holds(requirement, extra) or (extra and holds(requirement, "")):
            continue
        present = version(requirement.name)
        if present is None or any(version(name) is None for name in _of_extras(requirement)):
            missing.append(
                f"{requirement.name}{'[' + ','.join(requirement.extras) + ']' if requirement.extras else ''}"
            )
            continue
        installed[requirement.name] = present
        if not requirement.specifier.contains(present, prereleases=True):
            unsupported.append(f"{requirement.name} {present}, expected {requirement.specifier}")
    return {"installed": installed, "missing": sorted(set(missing)), "unsupported": unsupported}


def _of_extras(requirement: Requirement) -> list[str]:
    """Return the packages that the extras of a requirement name, such as libtpu of jax[tpu]."""
    try:
        nested = [Requirement(text) for text in importlib.metadata.requires(requirement.name) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [
        inner.name
        for inner in nested
        for extra in requirement.extras
        if inner.marker is not None
        and inner.marker.evaluate({"extra": extra})
        and not inner.marker.evaluate({"extra": ""})
    ]


def devices() -> dict[str, Any]:
    """Describe JAX's devices, or the error that starting a backend gave."""
    try:
        global_devices = jax.devices()
    except RuntimeError as error:
        return {"count": 0, "error": str(error)}
    local = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in local]
    return {
        "count": len(global_devices),
        "local": len(local),
        "platform": global_devices[0].platform,
        "kind": global_devices[0].device_kind,
        "memory_bytes": limits[0],
        "processes": jax.process_count(),
    }


def machine() -> dict[str, Any]:
    """Describe the operating system, the processor, the memory and the disk of the working directory."""
    disk = shutil.disk_usage(Path.cwd())
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": accelerators.cpu_name(),
        "cores": accelerators.cpu_cores(),
        "ram_bytes": _memory("MemTotal"),
        "ram_available_bytes": _memory("MemAvailable"),
        "disk_bytes": disk.total,
        "disk_free_bytes": disk.free,
    }


def network() -> dict[str, Any]:
    """Ask the hub for one small file; nothing is sent but the request.

    Returns:
        "endpoint", "reachable", "detail" and whether a token is known ("token").
    """
    import httpx
    from huggingface_hub import constants, get_token

    result = {"endpoint": constants.ENDPOINT, "reachable": False, "token": bool(get_token())}
    repository = load_manifest().artefacts["seed-text-tokenizer"].sources[0].where
    address = f"{constants.ENDPOINT}/{repository}/resolve/main/tokenizer_config.json"
    try:
        response = httpx.head(address, timeout=NETWORK_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        return {**result, "detail": f"{type(error).__name__}: {error}"}
    return {**result, "reachable": response.status_code < 500, "detail": f"status {response.status_code}"}


def version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory(field: str) -> int | None:
    """Return a field of /proc/meminfo in bytes; None where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
