"""Weights gathered where they are used: the plain products and gradients, and gradients that are scattered."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from seed_jax import sharding
from seed_jax.losses.next_token import next_token_loss
from seed_jax.models.nn import fsdp_matmul, remat
from seed_jax.plan import work

MESHES = [{"replica": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"replica": 8}]


def placed(mesh, *parts):
    specs = {"x": PartitionSpec(("replica", "fsdp")), "in": PartitionSpec("fsdp", "tensor")}
    specs["out"] = PartitionSpec("tensor", "fsdp")
    return [jax.device_put(value, NamedSharding(mesh, specs[kind])) for kind, value in parts]


def two_layers(x, w, v):
    hidden = jnp.tanh(fsdp_matmul.product(x, w, ("embed", "mlp"), jax.lax.Precision.HIGHEST))
    return jnp.sin(fsdp_matmul.product(hidden, v, ("mlp", "embed"), jax.lax.Precision.HIGHEST)).sum()


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_products_and_gradients_are_the_plain_ones(monkeypatch, shape):
    monkeypatch.setattr(fsdp_matmul, "STAGE", 4)  # so that eight devices scatter in two stages
    x, w, v = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(8, 4, 16), (16, 32), (32, 16)]))
    expected = jax.jit(jax.value_and_grad(two_layers, argnums=(0, 1, 2)))(x, w, v)
    mesh = sharding.make_mesh(shape)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        step = jax.jit(jax.value_and_grad(two_layers, argnums=(0, 1, 2)))
        arguments = placed(mesh, ("x", x), ("in", w), ("out", v))
        found, text = step(*arguments), step.lower(*arguments).compile().as_text()
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, atol=5e-5)  # float32 sums in another order
    if shape.get("fsdp", 1) > 1:
        assert "reduce-scatter" in text
        # No gradient of a whole weight is summed on every device.
        assert not re.search(r"f32\[(16,32|32,16)\]\S* all-reduce\(", text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(4, (4, 1)), (8, (8, 1)), (11, (11, 1)), (12, (4, 3)), (16, (8, 2)), (25, (5, 5)), (64, (8, 8)), (256, (16, 16))],
)
def test_many_devices_scatter_in_two_stages(size, expected):
    assert fsdp_matmul.stages(size) == expected


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_the_heads_gradient_is_sent_once(shape):
    """Of several chunks, whose logits are scored one after the other, only the summed gradient leaves a device."""
    hidden, head = jax.random.normal(jax.random.key(0), (8, 12, 16)), jax.random.normal(jax.random.key(1), (16, 32))
    targets = jax.random.randint(jax.random.key(2), (8, 12), 0, 30)
    mask = jax.random.bernoulli(jax.random.key(3), 0.5, (8, 12))

    def loss(hidden, head):
        found = next_token_loss(hidden, head, targets, mask, vocab_size=30, split=targets > 15, chunk=5)
        return found.total.sum, found

    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
    mesh = sharding.make_mesh(shape)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        arguments = placed(mesh, ("x", hidden), ("in", head))
        found, text = step(*arguments), step.lower(*arguments).compile().as_text()
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=5e-5)
    if "fsdp" in shape:
        assert len(re.findall(r" reduce-scatter\(", text)) == 1


def test_without_a_mesh_or_with_rows_it_does_not_divide_the_product_is_plain():
    assert fsdp_matmul.batch_axes(8) == ()
    with jax.set_mesh(sharding.make_mesh({"fsdp": 8})), nn.logical_axis_rules(sharding.RULES):
        assert fsdp_matmul.batch_axes(8) == ("replica", "fsdp")
        assert fsdp_matmul.batch_axes(6) == ()


def test_remat_policies_for_products_keep_gathered_ones():
    """A policy that saves products must do so although they are calls of their own: no product is done twice."""
    x, w, v = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(8, 4, 16), (16, 32), (32, 16)]))

    def products(policy):
        loss = jax.checkpoint(two_layers, policy=remat.POLICIES[policy])
        return work.of(jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, w, v)).products

    with jax.set_mesh(sharding.make_mesh({"fsdp": 8})), nn.logical_axis_rules(sharding.RULES):
        once = 2 * 8 * 4 * 16 * 32
        assert products("dots_no_batch") == products("dots") == 2 * 3 * once
        assert products("full") > 2 * 3 * once
