"""XLA's flags for the tests, most of whose programs run once or twice: compiling must not take longer than running."""


def flags(devices: int) -> str:
    """Return XLA_FLAGS for so many fake devices of a CPU."""
    # MLIR's emitters of fusions take as long as all the rest of compiling; without them LLVM emits them.
    return f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false"
