"""Learning rates of the original (spec D.2, K.6)."""

import pytest

from seed_jax.train.schedules import warmup_cosine


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
