"""Learning rates as functions of the step."""

import jax.numpy as jnp
import optax


def warmup_cosine(peak: float, steps: int, warmup_ratio: float, min_ratio: float) -> optax.Schedule:
    """Rise linearly from 0, then fall along a cosine to `min_ratio * peak` at `steps` (spec D.2).

    The original's formula: peak * 0.5 * ((1 + m) + (1 - m) * cos(pi * progress)).
    """
    warmup = max(1, round(steps * warmup_ratio))

    def schedule(step):
        rising = peak * step / warmup
        progress = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
        falling = peak * 0.5 * ((1 + min_ratio) + (1 - min_ratio) * jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup, rising, falling)

    return schedule


def epoch_cosine(
    peak: float, *, epochs: int, epoch_steps: int, warmup_steps: int, warmup_start_ratio: float, min_ratio: float
) -> optax.Schedule:
    """Warm up and then stay at `peak` in the first epoch; later epochs step down along a cosine (spec A.9).

    Within an epoch after the first the rate is constant: min + (peak - min) * 0.5 * (1 + cos(pi * epoch / epochs)).
    """

    def schedule(step):
        first = peak * jnp.minimum(1.0, warmup_start_ratio + (1 - warmup_start_ratio) * step / max(1, warmup_steps))
        epoch = step // epoch_steps
        later = peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * epoch / epochs)))
        return jnp.where(epoch < 1, first, later)

    return schedule
