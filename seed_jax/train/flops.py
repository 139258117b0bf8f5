"""Model FLOPs utilisation: one place for formulas and peaks.

Convention "causal": 6 FLOPs per token and matmul parameter (2 forward, 4 backward), the embedding look-up not counted
and the output head counted, plus 6 * layers * hidden * length for causal attention (half of the full square). Frozen
matrices have no weight gradient, so they count 4 instead of 6; recomputation under remat is never counted.
"""

import time

import jax
import jax.numpy as jnp

from seed_jax import accelerators


def transformer_flops_per_token(
    *, trained_matmul: int, frozen_matmul: int, layers: int, hidden: int, length: int
) -> float:
    """Return FLOPs of a training step per token (causal convention)."""
    return 6.0 * trained_matmul + 4.0 * frozen_matmul + 6.0 * layers * hidden * length


def device_peak(device: jax.Device) -> tuple[float, str]:
    """Return (FLOP/s, where the figure comes from); unknown devices are measured with a float32 matmul."""
    found = accelerators.of_device(device)
    if found and device.platform != "cpu":
        return found.peak, f"{found.kinds[0]} bfloat16 specification"
    return _measure_peak() / jax.local_device_count(), "measured float32 matmul"


def _measure_peak(size: int = 1024, repeats: int = 3) -> float:
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)
