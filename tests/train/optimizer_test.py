"""Learning rates of the original (spec D.2, K.6)."""

import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.train.optimizer import check_slow, make_optimizer, make_schedule, warmup_cosine
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


def test_pretrained_modules_may_learn_more_slowly():
    params = {"params": {name: {"kernel": jnp.ones((4, 4))} for name in ("query_ffn", "text_ffn")}}
    config = config_for("pretrain:tiny", **{"optimizer.slow": ("query_ffn",), "optimizer.slow_ratio": 0.25})
    tx = make_optimizer(config)
    state = tx.init(params)
    for _ in range(2):  # the rate of the first step is 0
        updates, state = tx.update(params, state, params)
    slow, fast = (np.asarray(updates["params"][name]["kernel"]) for name in ("query_ffn", "text_ffn"))
    assert (fast != 0).all()
    np.testing.assert_allclose(slow, 0.25 * fast, rtol=1e-6)


def test_a_name_that_learns_slowly_is_part_of_the_model():
    trained = {"params": {"query_ffn": {"kernel": 0}}}
    check_slow(("query_ffn", "kernel"), trained)
    with pytest.raises(UserError, match=r"optimizer\.slow has 'query_fnn'.*did you mean query_ffn"):
        check_slow(("query_ffn", "query_fnn"), trained)
