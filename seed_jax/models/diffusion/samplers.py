"""Samplers PNDM, DDIM and DPM-Solver++ (2M): one loop under `lax.scan`, three tables of coefficients (spec B.4).

All three are linear multistep methods: with x the sample, o the model's output at x and u a combination of both that
is remembered,

    u_k     = from_sample_k * x_k + from_output_k * o_k
    x_(k+1) = keep_k * x + weights_k[0] * u_k + weights_k[1] * (last remembered) + weights_k[2] * (the one before) + ...

where x is x_k, or once, in PNDM's second evaluation, the sample before it. The coefficients are computed in float64.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seed_jax.errors import UserError
from seed_jax.models.diffusion.noise_schedule import PREDICTION_TYPES, NoiseScheduleConfig, alphas_cumprod
from seed_jax.typing import Leaf

ORDER = 4  # outputs that the longest formula combines
Condition = TypeVar("Condition")


@flax.struct.dataclass
class SamplerSteps:
    """The coefficients of each of K evaluations of the model (or, inside the loop, of one)."""

    timesteps: Int[Leaf, "*K"]
    from_sample: Float[Leaf, "*K"]
    from_output: Float[Leaf, "*K"]
    keep: Float[Leaf, "*K"]
    weights: Float[Leaf, "*K 4"]
    restart: Bool[Leaf, "*K"]  # step from the sample of the evaluation before
    push: Bool[Leaf, "*K"]  # remember this evaluation

    def __len__(self) -> int:
        return self.timesteps.shape[0]


@flax.struct.dataclass
class SamplerState:
    """What one evaluation hands to the next.

    Attributes:
        sample: the present sample.
        previous: the sample before it.
        remembered: combinations of earlier samples and outputs, the newest first.
    """

    sample: Float[Array, "B h w C"] | Any  # Any: shardings have the same structure
    previous: Float[Array, "B h w C"] | Any
    remembered: Float[Array, "3 B h w C"] | Any

    @classmethod
    def start(cls, latents: Float[Array, "B h w C"]) -> "SamplerState":
        """Return the state before the first evaluation, in float32."""
        x = latents.astype(jnp.float32)
        return cls(x, x, jnp.zeros((ORDER - 1, *x.shape), jnp.float32))


@flax.struct.dataclass
class Trajectory:
    """The final sample, and on request the samples after every evaluation."""

    final: Float[Array, "B h w C"]
    intermediates: Float[Array, "K B h w C"] | None


def sample(
    model: Callable[[Float[Array, "B h w C"], Int[Array, ""]], Float[Array, "B h w C"]],
    latents: Float[Array, "B h w C"],
    steps: SamplerSteps,
    *,
    return_intermediates: bool = False,
    on_step: Callable[[Int[Array, ""]], None] | None = None,
) -> Trajectory:
    """Denoise latents, in float32.

    Args:
        model: (sample, timestep) -> prediction.
        latents: standard normal noise.
        steps: from `sampler_steps`.
        return_intermediates: return the samples after all evaluations.
        on_step: called with the number of evaluations done, from inside the compiled loop.
    """

    def body(state, step_and_index):
        index, step = step_and_index
        state = sampler_step(model, state, step)
        if on_step is not None:
            on_step(index + 1)
        return state, state.sample if return_intermediates else None

    state, intermediates = jax.lax.scan(body, SamplerState.start(latents), (jnp.arange(len(steps)), steps))
    return Trajectory(state.sample, intermediates)


def sampler_step(
    model: Callable[[Float[Array, "B h w C"], Int[Array, ""]], Float[Array, "B h w C"]],
    state: SamplerState,
    step: SamplerSteps,
) -> SamplerState:
    """Evaluate the model once; `step` is one entry of the table."""
    x = state.sample
    output = model(x, step.timesteps).astype(jnp.float32)
    u = step.from_sample * x + step.from_output * output
    recent = jnp.concatenate([u[None], state.remembered])
    origin = jnp.where(step.restart, state.previous, x)
    following = step.keep * origin + jnp.einsum("o,o...->...", step.weights, recent, precision="highest")
    return SamplerState(following, x, jnp.where(step.push, recent[:-1], state.remembered))


def guided(
    denoise: Callable[[Float[Array, "B h w C"], Int[Array, " B"], Condition], Float[Array, "B h w C"]],
    condition: Condition,
    negative: Condition | None,
    guidance_scale: Float[Array, ""] | float,
) -> Callable[[Float[Array, "B h w C"], Int[Array, ""]], Float[Array, "B h w C"]]:
    """Return the model for `sample` with classifier-free guidance: negative + scale * (positive - negative).

    Args:
        denoise: (latents, timesteps, condition) -> prediction.
        condition: pytree of arrays whose leading axis is the batch.
        negative: the unconditional (or negative) condition; None runs without guidance, in half the time.
        guidance_scale: 1 is no guidance.
    """
    if negative is None:
        return lambda x, t: denoise(x, jnp.full(x.shape[:1], t), condition)
    # The two conditions of an image are adjacent, so that a batch that is sharded over devices stays sharded.
    interleaved = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), negative, condition)

    def model(x, t):
        y = denoise(jnp.repeat(x, 2, axis=0), jnp.full((2 * x.shape[0],), t), interleaved)
        return y[0::2] + guidance_scale * (y[1::2] - y[0::2])

    return model


@functools.lru_cache(maxsize=64)  # a server asks for the same few with every image
def sampler_steps(sampler: str, config: NoiseScheduleConfig, steps: int) -> SamplerSteps:
    """Return the coefficients of `sampler` ("pndm", "ddim" or "dpmpp") for `steps` steps, as NumPy arrays.

    Raises:
        UserError: unknown sampler, prediction type or timestep spacing, or a number of steps out of range.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"Unknown sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}.")
    if config.prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"Unknown prediction_type {config.prediction_type!r}: expected {' or '.join(PREDICTION_TYPES)}."
        )
    return SAMPLERS[sampler](config, steps)


def pndm(config: NoiseScheduleConfig, steps: int) -> SamplerSteps:
    """PNDM without Runge-Kutta steps (PLMS): the second timestep is evaluated twice, so 20 steps take 21."""
    ascending = _ascending_timesteps(config, steps)
    timesteps = np.concatenate([ascending[:-1], ascending[-2:-1], ascending[-1:]])[::-1]
    stride = config.num_train_timesteps // steps
    formulas = [
        [1],
        [1 / 2, 1 / 2],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
    rows = []
    for k, t in enumerate(int(t) for t in timesteps):
        # The second evaluation repeats the first step, now with the mean of the slopes at both its ends.
        start, end = (t + stride, t) if k == 1 else (t, t - stride)
        a, p = _alpha(config, start), _alpha(config, end)
        slope = -(p - a) / (a * (1 - p) ** 0.5 + (a * (1 - a) * p) ** 0.5)
        keep = (p / a) ** 0.5
        if config.prediction_type == "v_prediction":  # the formulas combine raw outputs; noise comes from the result
            keep, slope = keep + slope * (1 - a) ** 0.5, slope * a**0.5
        weights = slope * np.array(formulas[min(k, 4)])
        rows.append(_row(t, 0.0, 1.0, keep, weights, restart=k == 1, push=k != 1))
    return _stack(rows)


def ddim(config: NoiseScheduleConfig, steps: int) -> SamplerSteps:
    """Deterministic DDIM (eta 0, no clipping)."""
    timesteps = _ascending_timesteps(config, steps)[::-1]
    stride = config.num_train_timesteps // steps
    rows = []
    for t in (int(t) for t in timesteps):
        a, p = _alpha(config, t), _alpha(config, t - stride)
        clean, noise = _clean_factors(config, a), _noise_factors(config, a)
        keep, weight = (p**0.5 * c + (1 - p) ** 0.5 * n for c, n in zip(clean, noise, strict=True))
        rows.append(_row(t, 0.0, 1.0, keep, [weight]))
    return _stack(rows)


def dpmpp(config: NoiseScheduleConfig, steps: int) -> SamplerSteps:
    """DPM-Solver++ of second order, multistep, midpoint; the last step to zero noise is of first order."""
    timesteps = [int(t) for t in _solver_timesteps(config, steps)]
    alphas = np.array([float(alphas_cumprod(config)[t]) for t in timesteps])
    log_snr = np.log(alphas / (1 - alphas)) / 2
    rows = []
    for k, t in enumerate(timesteps):
        a = alphas[k]
        from_sample, from_output = _clean_factors(config, a)
        if k + 1 == len(timesteps):
            keep, weights = 0.0, [1.0]
        else:
            p, h = alphas[k + 1], log_snr[k + 1] - log_snr[k]
            keep, gain = ((1 - p) / (1 - a)) ** 0.5, p**0.5 * -np.expm1(-h)
            correction = 0.0 if k == 0 else h / (log_snr[k] - log_snr[k - 1]) / 2
            weights = [gain * (1 + correction), -gain * correction]
        rows.append(_row(t, from_sample, from_output, keep, weights))
    return _stack(rows)


SAMPLERS: dict[str, Callable[[NoiseScheduleConfig, int], SamplerSteps]] = {"pndm": pndm, "ddim": ddim, "dpmpp": dpmpp}


def _ascending_timesteps(config: NoiseScheduleConfig, steps: int) -> Int[np.ndarray, " S"]:
    """Spread `steps` timesteps over the schedule as PNDM and DDIM do, in ascending order."""
    _check_steps(steps, config.num_train_timesteps)
    count = config.num_train_timesteps
    if config.timestep_spacing == "leading":
        return np.arange(steps) * (count // steps) + config.steps_offset
    if config.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps).round().astype(np.int64)
    if config.timestep_spacing == "trailing":
        return np.round(np.arange(count, 0, -count / steps))[::-1].astype(np.int64) - 1
    raise _unknown_spacing(config)


def _solver_timesteps(config: NoiseScheduleConfig, steps: int) -> Int[np.ndarray, " S"]:
    """Spread `steps` timesteps as DPM-Solver does, leaving a last step to zero noise, in descending order."""
    _check_steps(steps, config.num_train_timesteps - 1)
    count = config.num_train_timesteps
    if config.timestep_spacing == "leading":
        return (np.arange(steps + 1) * (count // (steps + 1)))[:0:-1] + config.steps_offset
    if config.timestep_spacing == "linspace":
        return np.linspace(0, count - 1, steps + 1).round()[:0:-1].astype(np.int64)
    if config.timestep_spacing == "trailing":
        return np.round(np.arange(count, 0, -count / steps)).astype(np.int64) - 1
    raise _unknown_spacing(config)


def _check_steps(steps: int, largest: int) -> None:
    if not 1 <= steps <= largest:
        raise UserError(f"{steps} sampling steps are not possible: expected 1 to {largest}.")


def _unknown_spacing(config: NoiseScheduleConfig) -> UserError:
    return UserError(f"Unknown timestep_spacing {config.timestep_spacing!r}: expected leading, linspace or trailing.")


def _alpha(config: NoiseScheduleConfig, t: int) -> float:
    """Return the cumulative alpha at `t`; before the first timestep, the checkpoint's final alpha."""
    if t < 0:
        return 1.0 if config.set_alpha_to_one else float(alphas_cumprod(config)[0])
    return float(alphas_cumprod(config)[t])


def _clean_factors(config: NoiseScheduleConfig, a: float) -> tuple[float, float]:
    """Return the factors of (sample, output) whose sum is the predicted clean latent."""
    if config.prediction_type == "v_prediction":
        return a**0.5, -((1 - a) ** 0.5)
    return a**-0.5, -(((1 - a) / a) ** 0.5)


def _noise_factors(config: NoiseScheduleConfig, a: float) -> tuple[float, float]:
    """Return the factors of (sample, output) whose sum is the predicted noise."""
    return ((1 - a) ** 0.5, a**0.5) if config.prediction_type == "v_prediction" else (0.0, 1.0)


def _row(t, from_sample, from_output, keep, weights, *, restart=False, push=True) -> dict:
    padded = np.zeros(ORDER)
    padded[: len(weights)] = weights
    return {
        "timesteps": np.int32(t),
        "from_sample": np.float32(from_sample),
        "from_output": np.float32(from_output),
        "keep": np.float32(keep),
        "weights": padded.astype(np.float32),
        "restart": restart,
        "push": push,
    }


def _stack(rows: list[dict]) -> SamplerSteps:
    columns: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return SamplerSteps(**columns)
