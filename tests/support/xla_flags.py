"""XLA flags of the tests, whose programs run only once or twice, so that compile time dominates."""

import importlib.metadata


def flags(devices: int) -> str:
    """Return XLA_FLAGS for `devices` fake CPU devices."""
    options = [f"--xla_force_host_platform_device_count={devices}"]
    # The MLIR fusion emitters take half of the compile time. From 0.12 on, XLA aborts at the option that disables them.
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
        options.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(options)
