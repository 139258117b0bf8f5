"""Peak throughput of the device: matmuls in bfloat16 and float32, and copies through its memory."""

from benchmarks.items import common

SIZES = {"tiny": (128, 1 << 16), "cpu": (2048, 1 << 27), "gpu": (8192, 1 << 31)}  # side of the matrices; elements


def main() -> None:
    args = common.parse_args(__doc__)
    (with_jax if args.side == "seed_jax" else with_torch)(args)


def with_jax(args) -> None:
    import jax
    import jax.numpy as jnp

    side, elements = SIZES[args.scale]
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision="default"))
    for dtype in ("bfloat16", "float32"):
        x, y = (jax.random.normal(key, (side, side), dtype) for key in jax.random.split(jax.random.key(0)))
        _report_product(dtype, side, common.measure(lambda x=x, y=y: product(x, y).block_until_ready(), 10, 3))
    array = jax.random.normal(jax.random.key(0), (elements,), jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    _report_copy(array.nbytes, common.measure(lambda: add(array).block_until_ready(), 10, 3))


def with_torch(args) -> None:
    import torch

    device = common.torch_device(args.threads)
    side, elements = SIZES[args.scale]
    for dtype in ("bfloat16", "float32"):
        x, y = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
        _report_product(dtype, side, common.measure(common.torch_timed(lambda x=x, y=y: x @ y), 10, 3))
    array = torch.randn(elements, device=device).to(torch.bfloat16)
    _report_copy(array.nbytes, common.measure(common.torch_timed(lambda: array + 1), 10, 3))


def _report_product(dtype: str, side: int, times: dict[str, float]) -> None:
    rates = {name: 2 * side**3 / times[name] / 1e12 for name in ("median", "max", "min")}
    common.report(f"matmul {dtype} {side}", rates["median"], "TFLOP/s", min=rates["max"], max=rates["min"])


def _report_copy(size: int, times: dict[str, float]) -> None:
    rates = {name: 2 * size / times[name] / 1e9 for name in ("median", "max", "min")}  # read and written
    common.report("read and write", rates["median"], "GB/s", min=rates["max"], max=rates["min"], bytes=2 * size)


if __name__ == "__main__":
    main()
