"""One step: exact accumulation, frozen parameters, the same result on any mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seed_jax import sharding
from seed_jax.losses.next_token import WeightedSum
from seed_jax.train.stage import LossOutput, Stage
from seed_jax.train.state import create, join, make_layout
from seed_jax.train.step import gradients, make_step, microbatches

WIDTH = 16


def toy_stage() -> Stage:
    """Fit y = tanh(x w) v with v frozen; rows have masks of very different weight."""

    def abstract():
        return {
            "params": {
                "w": {
                    "kernel": nn.LogicallyPartitioned(
                        jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32), ("embed", "mlp")
                    )
                },
                "v": {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((WIDTH, 4), jnp.float32), ("mlp", None))},
            }
        }

    def init(key, shardings):
        def fresh(key):
            one, two = jax.random.split(key)
            kernels = jax.random.normal(one, (WIDTH, WIDTH)), jax.random.normal(two, (WIDTH, 4))
            return {"params": {"w": {"kernel": kernels[0]}, "v": {"kernel": kernels[1]}}}

        return jax.jit(fresh, out_shardings=shardings)(key)

    def loss(variables, batch, key):
        del key
        params = variables["params"]
        error = jnp.tanh(batch["x"] @ params["w"]["kernel"]) @ params["v"]["kernel"] - batch["y"]
        total = WeightedSum((jnp.square(error).mean(-1) * batch["mask"]).sum(), batch["mask"].sum())
        return LossOutput(total, {"error": total})

    return Stage(
        kind="toy",
        model_config={},
        files={},
        abstract=abstract,
        init=init,
        trainable=lambda path: path[1] == "w",
        loss=loss,
        batches=lambda rows: None,
        batch_size=8,
        row_spec={},
        tokens_per_batch=8,
        flops_per_token=1.0,
        flops_convention="none",
    )


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    mask = np.array([0, 0, 0, 1, 5, 7, 0.5, 3], np.float32)
    return {
        "x": rng.normal(size=(8, WIDTH)).astype(np.float32),
        "y": rng.normal(size=(8, 4)).astype(np.float32),
        "mask": mask,
    }


def run_steps(mesh_shape, batch, accumulation=1, steps=3):
    stage, tx = toy_stage(), optax.adamw(1e-2)
    mesh = sharding.make_mesh(mesh_shape, jax.devices()[: int(np.prod(list(mesh_shape.values())))])
    with jax.set_mesh(mesh):
        layout = make_layout(stage, tx, mesh, "float32")
        state, frozen = create(stage, tx, layout, jax.random.key(1))
        step = jax.jit(make_step(stage, tx, lambda step: 1e-2, accumulation, seed=0))
        rows, losses = sharding.place(batch, sharding.batch_sharding(mesh), 8), []
        for _ in range(steps):
            state, metrics = step(state, frozen, rows)
            losses.append(float(metrics["loss"]))
    return state, frozen, losses


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_equals_one_large_batch(batch, accumulation):
    stage, batch = toy_stage(), jax.tree.map(jnp.asarray, batch)
    variables = stage.init(jax.random.key(1), None)["params"]
    trained, frozen = {"params": {"w": variables["w"]}}, {"params": {"v": variables["v"]}}
    whole, output = gradients(stage, trained, frozen, batch, jax.random.key(0), 1)
    parts, summed = gradients(stage, trained, frozen, batch, jax.random.key(0), accumulation)
    # 1e-6 of the norm: the same float32 sums in another order. The masks differ by microbatch, some are all zero.
    one, other = whole["params"]["w"]["kernel"], parts["params"]["w"]["kernel"]
    assert jnp.linalg.norm(one - other) < 1e-6 * jnp.linalg.norm(one)
    np.testing.assert_allclose(summed.total.mean, output.total.mean, rtol=1e-6)


def test_microbatches_keep_a_device_its_rows():
    rows = microbatches({"x": jnp.arange(8)}, 2)["x"]
    # Two devices hold rows 0-3 and 4-7: each microbatch takes half of either.
    assert rows.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_any_mesh_gives_the_same_losses(batch):
    _, _, single = run_steps({"fsdp": 1}, batch)
    _, _, cut = run_steps({"fsdp": 4, "tensor": 2}, batch)
    _, _, replicas = run_steps({"replica": 2, "fsdp": 2, "tensor": 2}, batch, accumulation=2)
    np.testing.assert_allclose(cut, single, rtol=1e-6)
    np.testing.assert_allclose(replicas, single, rtol=1e-6)
    assert single[-1] < single[0]


def test_frozen_parameters_have_no_optimizer_state(batch):
    state, frozen, _ = run_steps({"fsdp": 4, "tensor": 2}, batch)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert [leaf.shape for leaf in moments] == [(WIDTH, WIDTH)] * 2
    assert all(leaf.sharding == state.trained["params"]["w"]["kernel"].sharding for leaf in moments)
    fresh = toy_stage().init(jax.random.key(1), None)
    np.testing.assert_array_equal(frozen["params"]["v"]["kernel"], fresh["params"]["v"]["kernel"])
    assert set(join(state.trained, frozen)["params"]) == {"w", "v"}
