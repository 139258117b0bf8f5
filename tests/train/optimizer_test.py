"""Learning rates of the original (spec D.2, K.6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.train.optimizer import make_optimizer, make_schedule, warmup_cosine
from tests.support import golden
from tests.support.configs import config_for


@pytest.mark.parametrize(
    ("peak", "steps", "warmup", "floor", "warm_step"),
    [(1.5e-4, 30_000, 0.03, 0.05, 900), (1e-4, 50_000, 0.07, 0.1, 3500)],
)
def test_official_curves(peak, steps, warmup, floor, warm_step):
    schedule = warmup_cosine(peak, steps, warmup, floor)
    assert float(schedule(0)) == 0.0
    # Relative 1e-5: float32 evaluates the cosine.
    assert float(schedule(warm_step)) == pytest.approx(peak, rel=1e-5)
    assert float(schedule(warm_step // 2)) == pytest.approx(peak / 2, rel=1e-5)
    assert float(schedule((steps + warm_step) // 2)) == pytest.approx(peak * (1 + floor) / 2, rel=1e-5)
    assert float(schedule(steps)) == pytest.approx(peak * floor, rel=1e-5)
    assert float(schedule(steps + 10)) == pytest.approx(peak * floor, rel=1e-5)


@pytest.mark.parametrize(("stage", "module"), [("pretrain_qformer", "qformer"), ("pretrain_codebook", "codebook")])
def test_epochs_of_the_tokenizer_s_stages(stage, module):
    """The full configs give the original's rates at every recorded (epoch, step)."""
    recorded = golden.load_json("tokenizer_train_tiny/lr_schedule.json")[stage]
    config = config_for(f"tokenizer_{module}:full")
    schedule = make_schedule(config.optimizer, config.steps)
    for epoch, step, rate in recorded["rows_epoch_step_lr"]:
        found = float(schedule(epoch * recorded["iters_per_epoch"] + step))
        # Relative 1e-5: float32 evaluates the cosine.
        assert found == pytest.approx(rate, rel=1e-5), (epoch, step)
    assert config.steps == recorded["max_epoch"] * recorded["iters_per_epoch"]


def test_muon_turns_each_layer_s_matrix_equally_in_all_directions():
    """Updates of stacked kernels have singular values near the rate; other parameters move as with AdamW."""
    config = config_for("pretrain:tiny", **{"optimizer.name": "muon", "optimizer.weight_decay": 0.0})
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"layers": {"kernel": jnp.zeros((3, 8, 16))}, "embed": {"embedding": jnp.zeros((32, 8))}}
    grads = {
        "layers": {"kernel": jax.random.normal(keys[0], (3, 8, 16)) * jnp.array([1.0, 10.0, 0.1]).reshape(3, 1, 1)},
        "embed": {"embedding": jax.random.normal(keys[1], (32, 8))},
    }

    tx = make_optimizer(config)
    state = tx.init(params)
    for _ in range(2):  # the rate of the first step is 0
        updates, state = tx.update(grads, state, params)
    rate = float(make_schedule(config.optimizer, config.steps)(1)) * config.optimizer.muon_lr_ratio
    for layer in np.asarray(updates["layers"]["kernel"]):
        singular_values = np.linalg.svd(layer / rate, compute_uv=False)
        assert 0.6 < singular_values.min() <= singular_values.max() < 1.8
    embedding = np.asarray(updates["embed"]["embedding"])
    np.testing.assert_array_equal(np.sign(embedding), -np.sign(grads["embed"]["embedding"]))
    assert np.abs(embedding).max() < 2 * rate / config.optimizer.muon_lr_ratio
