"""`seed-jax doctor`: report versions, devices and missing packages, or verify the files of a model."""

import argparse
import importlib.metadata
import os
import platform
from pathlib import Path

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
    text = (
        "Report versions, devices and missing packages, or verify a directory; exit code 1 if a core package or every "
        "device is missing, or a file is damaged."
    )
    parser = subparsers.add_parser("doctor", help="report versions, devices and missing packages", description=text)
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="verify a model directory, bundle or training workdir instead: read every file and compare its checksums",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report and return the exit code."""
    if args.directory is not None:
        return _verify(args.directory)
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


def _verify(directory: Path) -> int:
    from seed_jax.checkpoint import model_dir  # deferred: --help needs no JAX
    from seed_jax.checkpoint.kinds import ModelKind
    from seed_jax.checkpoint.verify import Verification, verify
    from seed_jax.inference.language_model import read_references

    directories = [directory]
    if (directory / model_dir.CONFIG).is_file():
        _, config = model_dir.read_config(directory)
        if config["kind"] == ModelKind.SEED_LLAMA:  # a bundle names the directories of its models
            parts = read_references(directory)
            named = (parts.language_model, parts.image_tokenizer, parts.decoder)
            directories = [Path(part) for part in named if part is not None]
    found = Verification()
    for part in directories:
        result = verify(part)
        found.verified += result.verified
        found.problems += result.problems
    for line in found.verified:
        print(f"verified {line}")
    for problem in found.problems:
        print(f"damaged: {problem}")
    print("no file is damaged" if not found.problems else f"{len(found.problems)} problems: copy or import again")
    return EXIT_UNHEALTHY if found.problems else 0


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
