"""Run the training step on the original's tensors, and compare by the original's names."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict

from seed_jax import sharding
from seed_jax.convert.key_table import Entry, disassemble
from seed_jax.train.optimizer import make_optimizer, make_schedule
from seed_jax.train.stage import LossOutput, Stage
from seed_jax.train.state import TrainState, split
from seed_jax.train.step import gradients, make_step

# The official grouping and hyper-parameters of config.json, at a constant rate.
OPTIMIZER = ml_collections.ConfigDict(
    {
        "schedule": "epochs",
        "peak_lr": 1e-4,
        "min_lr_ratio": 1.0,
        "warmup_start_ratio": 1.0,
        "warmup_steps": 1,
        "epoch_steps": 100,
        "epochs": 1,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "clip_norm": 0.0,
    }
)
# Programs that run once need not be fast: this halves the time to compile them.
QUICK = {"xla_backend_optimization_level": 0}


def toy_stage(loss: Callable[..., LossOutput], trainable: Callable[[tuple[str, ...]], bool], **more) -> Stage:
    """Return a stage with nothing but what a step needs."""
    return Stage(
        kind="",
        model_config={},
        files={},
        abstract=dict,
        init=lambda key, cut: {},
        trainable=trainable,
        loss=loss,
        batches=lambda rows: None,
        batch_size=6,
        row_spec={},
        tokens_per_batch=6,
        flops_per_token=0.0,
        flops_convention="",
        **more,
    )


def gradient_function(stage: Stage, table: list[Entry]) -> Callable[..., dict[str, np.ndarray]]:
    """Return (variables, batch, mesh) -> gradients of the trained parameters under their official names."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(trained, frozen, batch):
        return gradients(stage, trained, frozen, batch, jax.random.key(0), 1)[0]

    def call(variables, batch, mesh=None):
        trained, frozen = split(variables, stage.trainable)
        if mesh is None:
            return named(table, run(trained, frozen, batch)["params"])
        placed = jax.device_put((trained, frozen), sharding.replicated(mesh))
        rows = sharding.place(jax.tree.map(np.asarray, batch), sharding.batch_sharding(mesh), 6)
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
            return named(table, run(*placed, rows)["params"])

    return call


def named(table: list[Entry], params) -> dict[str, np.ndarray]:
    paths = flatten_dict(params, sep="/")
    return dict(disassemble([entry for entry in table if entry.path in paths], params))


def steps(stage: Stage, variables, batch, count: int, before_each: Callable[..., None] = lambda params: None):
    """Return the trained variables after `count` AdamW steps on the same batch."""
    trained, frozen = split(variables, stage.trainable)
    tx = make_optimizer(OPTIMIZER, count)
    state = TrainState(jnp.zeros((), jnp.int32), trained, jax.jit(tx.init)(trained))
    step = jax.jit(
        make_step(stage, tx, make_schedule(OPTIMIZER, count), accumulation=1, seed=0), compiler_options=QUICK
    )
    for _ in range(count):
        before_each(state.trained["params"])
        state, _ = step(state, frozen, batch)
    before_each(state.trained["params"])
    return state.trained


def assert_gradients(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float) -> None:
    """Compare each gradient relative to its norm, except those of key biases: rounding noise around zero."""
    expected = {name: value for name, value in expected.items() if not name.endswith("self.key.bias")}
    assert not expected.keys() - found.keys()
    errors = {
        name: np.linalg.norm(found[name] - value) / max(np.linalg.norm(value), 1e-12)
        for name, value in expected.items()
    }
    wrong = {name: error for name, error in errors.items() if not error <= rtol}
    assert not wrong, (
        f"{len(wrong)} of {len(errors)} gradients differ, the most: {max(wrong.items(), key=lambda x: x[1])}"
    )


def assert_parameters(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], grads: dict[str, np.ndarray], atol: float
) -> None:
    """Compare parameters after a few steps of AdamW, which makes a whole step of a gradient however small.

    Left out is what has a gradient of rounding noise: biases of keys, which softmax ignores (in the decoder blocks the
    middle third of `qkv.bias`), and single elements (1 of 220,000 matters) far below the gradient's largest.
    """
    compared = [name for name in expected if not name.endswith("self.key.bias")]
    left_out = 0
    for name in compared:
        size = np.abs(grads[name])
        noise = (size > 0) & (size < 1e-5 * size.max())  # exactly 0 is compared: such elements only decay
        if name.endswith("qkv.bias"):
            noise.reshape(3, -1)[1] = True
        else:
            left_out += noise.sum()
        np.testing.assert_allclose(found[name][~noise], expected[name][~noise], atol=atol, rtol=0, err_msg=name)
    assert left_out < 1e-3 * sum(grads[name].size for name in compared)
