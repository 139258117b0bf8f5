"""Parity and speed of the attention implementations on this device, forward and backward, against float32."""

import functools

from benchmarks.items import common

SHAPES = {"tiny": (1, 64, 2, 32), "cpu": (1, 512, 8, 128), "gpu": (4, 2048, 32, 128)}  # batch, tokens, heads, width


def main() -> None:
    args = common.parse_args(__doc__)
    (with_jax if args.side == "seed_jax" else with_torch)(args)


def with_jax(args) -> None:
    import jax
    import jax.numpy as jnp

    from seed_jax.models.nn.attention import attend
    from seed_jax.precision import Precision

    batch, tokens, heads, width = SHAPES[args.scale]
    keys = jax.random.split(jax.random.key(0), 4)
    exact = [jax.random.normal(key, (batch, tokens, heads, width)) for key in keys]
    segments = jnp.broadcast_to(jnp.arange(tokens) // (tokens // 2) + 1, (batch, tokens))

    def run(implementation, precision, q, k, v, weights):
        def loss(q, k, v):
            context = attend(
                q, k, v, causal=True, segment_ids=segments, precision=precision, implementation=implementation
            )
            return (context.astype(jnp.float32) * weights).sum(), context

        (_, context), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return context, *gradients

    expected = jax.jit(functools.partial(run, "xla", Precision()))(*exact)
    half = [*(x.astype(jnp.bfloat16) for x in exact[:3]), exact[3]]
    implementations = ("xla", "chunked", *(("cudnn",) if jax.default_backend() == "gpu" else ()))
    for implementation in implementations:
        program = jax.jit(functools.partial(run, implementation, Precision("bfloat16", "bfloat16")))
        times = common.measure(lambda program=program: jax.block_until_ready(program(*half)), 10, 3)
        for name, ours, reference in zip(("output", "dq", "dk", "dv"), program(*half), expected, strict=True):
            error = jnp.linalg.norm(ours.astype(jnp.float32) - reference) / jnp.linalg.norm(reference)
            common.report(f"{implementation} {name}, relative error", float(error), "")
        common.report(
            f"{implementation} forward and backward", 1e3 * times["median"], "ms", **common.spread(times, 1e3)
        )


def with_torch(args) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    device = common.torch_device(args.threads)
    batch, tokens, heads, width = SHAPES[args.scale]
    q, k, v = (
        torch.randn(batch, heads, tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )

    def run() -> None:
        scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    times = common.measure(common.torch_timed(run), 10, 3)
    common.report("SDPA forward and backward, one segment", 1e3 * times["median"], "ms", **common.spread(times, 1e3))


if __name__ == "__main__":
    main()
