"""`seed-jax doctor`: report versions, devices and missing packages."""

import argparse
import importlib.metadata
import os
import platform

PACKAGES = {
    "core": ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "array-record", "numpy"),
    "tpu": ("libtpu", "gcsfs"),
    "demo": ("scikit-image",),
    "decoder": ("diffusers",),
    "torch": ("torch",),
    "test": ("pytest", "transformers", "beartype"),
}
EXIT_UNHEALTHY = 1


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `doctor`."""
    text = "Report versions, devices and missing packages; exit code 1 if a core package or every device is missing."
    parser = subparsers.add_parser("doctor", help="report versions, devices and missing packages", description=text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report and return the exit code."""
    del args
    print(f"python {platform.python_version()} on {platform.platform()}")
    healthy = True
    for extra, packages in PACKAGES.items():
        versions = {name: _version(name) for name in packages}
        missing = [name for name, version in versions.items() if version is None]
        installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        remedy = "pip install seed-jax" if extra == "core" else f"pip install 'seed-jax[{extra}]'"
        print(f"{extra + ':':9}{installed}" + (f"  [missing: {', '.join(missing)}; {remedy}]" if missing else ""))
        healthy &= extra != "core" or not missing
    return 0 if _print_devices() and healthy else EXIT_UNHEALTHY


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_devices() -> bool:
    import jax  # deferred: a broken accelerator plug-in must not hide the versions above

    try:
        devices = jax.devices()
    except RuntimeError as error:
        print(f"devices: none ({error})")
        return False
    print(f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), {os.cpu_count()} CPU cores")
    for device in jax.local_devices()[:1]:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            print(f"memory: {stats['bytes_limit'] / 2**30:.1f} GiB per device")
    return True
