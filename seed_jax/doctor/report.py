"""The report of `seed-jax doctor`: collected once, printed as text or JSON."""

import os
from collections.abc import Sequence
from typing import Any

import seed_jax
from seed_jax.doctor import environment, traps
from seed_jax.doctor.environment import CORE, DEVELOPMENT, GIB
from seed_jax.doctor.model_check import ModelCheck
from seed_jax.inference.memory_plan import device_memory
from seed_jax.inference.quantization_choice import RELEASED, released_choices

_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "HF_HUB_OFFLINE", "LD_LIBRARY_PATH")


def collect(*, network: bool = False, fit: bool = True) -> dict[str, Any]:
    """Describe this machine as JSON values.

    Args:
        network: also ask the hub for a file.
        fit: also plan the memory of the released models, which takes some seconds.
    """
    devices = environment.devices()
    report: dict[str, Any] = {
        "seed_jax": seed_jax.__version__,
        "machine": environment.machine(),
        "packages": environment.packages(),
        "devices": devices,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "traps": traps.find_traps(devices),
    }
    if network:
        report["network"] = environment.network()
    if fit and devices["count"]:
        report["fits"] = _fits(devices["platform"])
    return report


def healthy(report: dict[str, Any]) -> bool:
    """Return whether no core package is missing and JAX has a device."""
    return bool(report["devices"]["count"]) and not report["packages"].get(CORE, {}).get("missing")


def _fits(platform: str) -> list[dict[str, Any]]:
    limit, dtype = device_memory(), "float32" if platform == "cpu" else "bfloat16"
    return [
        {
            "model": name,
            "decoder": decoder,
            "choices": [
                {"name": choice.name, "peak_bytes": choice.plan.peak, "fits": choice.fits(limit) if limit else None}
                for choice in released_choices(config(), dtype=dtype, decoder=decoder)
            ],
        }
        for name, config in RELEASED.items()
        for decoder in (False, True)
    ]


def lines(report: dict[str, Any], checks: Sequence[ModelCheck] = ()) -> list[str]:
    """Return the report as text, to read and to paste into an issue."""
    machine = report["machine"]
    result = [
        f"seed_jax {report['seed_jax']}, python {machine['python']} on {machine['system']}",
        f"cpu: {machine['cores']} x {machine['cpu']}",
        f"memory: {_gib(machine['ram_bytes'])}, {_gib(machine['ram_available_bytes'])} available; "
        f"disk here: {_gib(machine['disk_bytes'])}, {_gib(machine['disk_free_bytes'])} free",
        *_package_lines(report["packages"]),
        _device_line(report["devices"]),
    ]
    result += [f"variable: {name}={value}" for name, value in report["variables"].items()]
    if "network" in report:
        hub = report["network"]
        state = "reachable" if hub["reachable"] else "not reachable"
        token = "a token is set" if hub["token"] else "no token"
        result.append(f"hub: {hub['endpoint']} is {state} ({hub['detail']}); {token}")
    result += _fit_lines(report.get("fits", ()))
    result += [f"trap: {trap}" for trap in report["traps"]]
    for check in checks:
        what = f"{check.tensors} tensors, {_gib(check.bytes)}" if check.tensors else "names other directories"
        state = "complete" if not check.findings else f"{len(check.findings)} problem(s)"
        result.append(f"model {check.directory} ({check.kind or 'unknown'}): {state}; {what}")
        result += [f"  {finding.path}: {finding.problem}" for finding in check.findings]
    return result


def _package_lines(packages: dict[str, dict[str, Any]]) -> list[str]:
    if not packages:
        return ["packages: seed-jax is not installed (no metadata): run `pip install -e .` in the checkout"]
    core = packages[CORE]
    result = [f"core: {', '.join(f'{name} {version}' for name, version in core['installed'].items())}"]
    # JAX's compiler and plug-ins are not requirements of their own.
    others = {
        name: environment.version(name) for name in ("jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")
    }
    result.append(f"with: {', '.join(f'{name} {version}' for name, version in others.items() if version)}")
    if core["missing"]:
        result.append(f"core lacks {', '.join(core['missing'])}: pip install -U seed-jax")
    for extra, group in packages.items():
        if extra == CORE or (extra in DEVELOPMENT and group["missing"]):
            continue
        installed = ", ".join(f"{name} {version}" for name, version in group["installed"].items())
        if group["missing"]:
            lacks = f"lacks {', '.join(group['missing'])}: pip install 'seed-jax[{extra}]'"
            result.append(f"extra {extra}: {lacks}" + (f" (has {installed})" if installed else ""))
        else:
            result.append(f"extra {extra}: complete ({installed})")
    result += [
        f"untested version: {text}" for text in sorted({t for group in packages.values() for t in group["unsupported"]})
    ]
    return result


def _device_line(devices: dict[str, Any]) -> str:
    if not devices["count"]:
        return f"devices: none ({devices['error'].splitlines()[0]})"
    memory = f", {_gib(devices['memory_bytes'])} each" if devices["memory_bytes"] else ""
    hosts = f" on {devices['processes']} hosts" if devices["processes"] > 1 else ""
    return f"devices: {devices['count']} x {devices['kind']} ({devices['platform']}){hosts}{memory}"


def _fit_lines(fits: Sequence[dict[str, Any]]) -> list[str]:
    result = []
    for entry in fits:
        cells = ", ".join(f"{c['name']} {_gib(c['peak_bytes'])} {_verdict(c['fits'])}" for c in entry["choices"])
        result.append(f"fits: {entry['model']}{' with decoder' if entry['decoder'] else ''}: {cells}")
    return result


def _verdict(fits: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[fits]


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"
