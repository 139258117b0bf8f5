import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.models import attention
from seed_jax.models.attention import attend


def inputs(queries: int, keys: int) -> list[jax.Array]:
    shapes = [(2, queries, 4, 8), (2, keys, 2, 8), (2, keys, 2, 8)]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(("queries", "keys", "options"), [
    (32, 32, {}), (29, 17, {}),
    (29, 29, {"segment_ids": jnp.repeat(jnp.arange(3), 10)[None, :29].repeat(2, 0)}),
    (29, 29, {"causal": True, "mask": jnp.arange(29)[None, None, None] != jnp.arange(29)[None, None, :, None] - 3}),
])  # fmt: skip
def test_blocks_of_queries_equal_the_plain_product(monkeypatch, queries, keys, options):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    q, k, v = inputs(queries, keys)

    def run(implementation):
        def total(q, k, v):
            y = attend(q, k, v, implementation=implementation, **options)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ((_, plain), gradient), ((_, blocks), gradient_of_blocks) = run("xla"), run("chunked")
    np.testing.assert_allclose(blocks, plain, atol=1e-6)  # a few roundings of float32
    for ours, expected in zip(gradient_of_blocks, gradient, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_blocks_never_hold_all_scores():
    """Of 4096 x 4096 scores in float32, 64 MiB a head, only a block exists, forwards and backwards."""
    shape = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)

    def temporary_bytes(implementation):
        def total(q, k, v):
            return jnp.square(attend(q, k, v, implementation=implementation)).sum()

        return jax.jit(jax.grad(total)).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 4096**2
    assert temporary_bytes("xla") > scores
    assert temporary_bytes("chunked") < scores / 2
