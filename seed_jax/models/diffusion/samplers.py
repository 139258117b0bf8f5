"""PNDM, DDIM and DPM-Solver++ (2M): one loop under `lax.scan`, three tables of coefficients (spec B.4).

All three are linear multistep methods: with x the sample, o the model's output there and u what is remembered of both,

    u_k     = from_sample_k * x_k + from_output_k * o_k
    x_(k+1) = keep_k * x + weights_k[0] * u_k + weights_k[1] * (last remembered) + weights_k[2] * (the one before) + ...

where x is x_k, or once, in PNDM's second evaluation, the sample before it. The tables are computed in float64.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.diffusion.schedules import alphas_cumprod, ascending_timesteps, solver_timesteps
from seed_jax.models.diffusion.unclip_config import NoiseConfig

ORDER = 4  # outputs that the longest formula combines


@flax.struct.dataclass
class Steps:
    """What to do at each of K evaluations of the model (or, inside the loop, at one)."""

    timesteps: Int[Array, "*K"]
    from_sample: Float[Array, "*K"]
    from_output: Float[Array, "*K"]
    keep: Float[Array, "*K"]
    weights: Float[Array, "*K 4"]
    restart: Bool[Array, "*K"]  # step from the sample of the evaluation before
    push: Bool[Array, "*K"]  # remember this evaluation

    def __len__(self) -> int:
        return self.timesteps.shape[0]


@flax.struct.dataclass
class Trajectory:
    """The samples after every evaluation, and the last of them."""

    final: Float[Array, "B h w C"]
    each: Float[Array, "K B h w C"] | None


def sample(
    model: Callable[[Float[Array, "B h w C"], Int[Array, ""]], Float[Array, "B h w C"]],
    latents: Float[Array, "B h w C"],
    steps: Steps,
    *,
    keep_each: bool = False,
    on_step: Callable[[Int[Array, ""]], None] | None = None,
) -> Trajectory:
    """Walk from noise to a clean latent, in float32.

    Args:
        model: (sample, timestep) -> prediction.
        keep_each: return the samples of all evaluations.
        on_step: called with the number of evaluations done, from inside the compiled loop.
    """

    def body(carry, row):
        index, step = row
        x, before, remembered = carry
        output = model(x, step.timesteps).astype(jnp.float32)
        u = step.from_sample * x + step.from_output * output
        recent = jnp.concatenate([u[None], remembered])
        origin = jnp.where(step.restart, before, x)
        following = step.keep * origin + jnp.einsum("o,o...->...", step.weights, recent, precision="highest")
        if on_step is not None:
            on_step(index + 1)
        remembered = jnp.where(step.push, recent[:-1], remembered)
        return (following, x, remembered), following if keep_each else None

    x = latents.astype(jnp.float32)
    start = (x, x, jnp.zeros((ORDER - 1, *x.shape), jnp.float32))
    (final, _, _), each = jax.lax.scan(body, start, (jnp.arange(len(steps)), steps))
    return Trajectory(final, each)


def pndm(config: NoiseConfig, steps: int) -> Steps:
    """Plan PNDM without Runge-Kutta steps (PLMS): the second timestep is evaluated twice, so 20 steps take 21."""
    ascending = ascending_timesteps(config, steps)
    visited = np.concatenate([ascending[:-1], ascending[-2:-1], ascending[-1:]])[::-1]
    stride = config.num_train_timesteps // steps
    formulas = [
        [1],
        [1 / 2, 1 / 2],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    rows = []
    for k, t in enumerate(int(t) for t in visited):
        # The second evaluation repeats the first step, now with the mean of the slopes at both its ends.
        begin, end = (t + stride, t) if k == 1 else (t, t - stride)
        a, p = _alpha(config, begin), _alpha(config, end)
        slope = -(p - a) / (a * (1 - p) ** 0.5 + (a * (1 - a) * p) ** 0.5)
        keep = (p / a) ** 0.5
        if config.prediction_type == "v_prediction":  # the formulas combine raw outputs; noise comes from the result
            keep, slope = keep + slope * (1 - a) ** 0.5, slope * a**0.5
        weights = slope * np.array(formulas[min(k, 4)])
        rows.append(_row(t, 0.0, 1.0, keep, weights, restart=k == 1, push=k != 1))
    return _table(rows)


def ddim(config: NoiseConfig, steps: int) -> Steps:
    """Plan deterministic DDIM (eta 0, nothing clipped)."""
    visited = ascending_timesteps(config, steps)[::-1]
    stride = config.num_train_timesteps // steps
    rows = []
    for t in (int(t) for t in visited):
        a, p = _alpha(config, t), _alpha(config, t - stride)
        clean, noise = _clean(config, a), _noise(config, a)
        keep, weight = (p**0.5 * c + (1 - p) ** 0.5 * n for c, n in zip(clean, noise, strict=True))
        rows.append(_row(t, 0.0, 1.0, keep, [weight]))
    return _table(rows)


def dpmpp(config: NoiseConfig, steps: int) -> Steps:
    """Plan DPM-Solver++ of second order, multistep, midpoint; the last step goes to no noise at first order."""
    visited = [int(t) for t in solver_timesteps(config, steps)]
    alphas = np.array([float(alphas_cumprod(config)[t]) for t in visited])
    log_snr = np.log(alphas / (1 - alphas)) / 2
    rows = []
    for k, t in enumerate(visited):
        a = alphas[k]
        from_sample, from_output = _clean(config, a)
        if k + 1 == len(visited):
            keep, weights = 0.0, [1.0]
        else:
            p, h = alphas[k + 1], log_snr[k + 1] - log_snr[k]
            keep, gain = ((1 - p) / (1 - a)) ** 0.5, p**0.5 * -np.expm1(-h)
            bend = 0.0 if k == 0 else h / (log_snr[k] - log_snr[k - 1]) / 2
            weights = [gain * (1 + bend), -gain * bend]
        rows.append(_row(t, from_sample, from_output, keep, weights))
    return _table(rows)


SAMPLERS = {"pndm": pndm, "ddim": ddim, "dpmpp": dpmpp}


def plan(sampler: str, config: NoiseConfig, steps: int) -> Steps:
    """Return the table of `sampler` (pndm, ddim or dpmpp) for `steps` steps."""
    if sampler not in SAMPLERS:
        raise UserError(f"Unknown sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}.")
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(f"Unknown prediction_type {config.prediction_type!r}: expected epsilon or v_prediction.")
    return SAMPLERS[sampler](config, steps)


def _alpha(config: NoiseConfig, t: int) -> float:
    """Return the cumulated alpha at `t`; before the first timestep, the checkpoint's final alpha."""
    if t < 0:
        return 1.0 if config.set_alpha_to_one else float(alphas_cumprod(config)[0])
    return float(alphas_cumprod(config)[t])


def _clean(config: NoiseConfig, a: float) -> tuple[float, float]:
    """Return the factors of (sample, output) that give the clean latent."""
    if config.prediction_type == "v_prediction":
        return a**0.5, -((1 - a) ** 0.5)
    return a**-0.5, -(((1 - a) / a) ** 0.5)


def _noise(config: NoiseConfig, a: float) -> tuple[float, float]:
    """Return the factors of (sample, output) that give the noise."""
    return ((1 - a) ** 0.5, a**0.5) if config.prediction_type == "v_prediction" else (0.0, 1.0)


def _row(t, from_sample, from_output, keep, weights, *, restart=False, push=True) -> dict:
    padded = np.zeros(ORDER)
    padded[: len(weights)] = weights
    return {
        "timesteps": np.int32(t), "from_sample": np.float32(from_sample), "from_output": np.float32(from_output),
        "keep": np.float32(keep), "weights": padded.astype(np.float32), "restart": restart, "push": push,
    }  # fmt: skip


def _table(rows: list[dict]) -> Steps:
    return Steps(**{name: jnp.stack([row[name] for row in rows]) for name in rows[0]})
