"""Report a run: losses, throughput, MFU, time spent waiting, time left."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh

from seed_jax.errors import UserError
from seed_jax.train import flops
from seed_jax.train.config import TrainConfig
from seed_jax.train.runtime.goodput import Goodput
from seed_jax.train.runtime.hooks import Hook, StepResult
from seed_jax.train.runtime.metric_writer import MetricWriter
from seed_jax.train.stage import ShownSample, Stage

_TIMED = ("data_wait", "checkpoint", "evaluate")


class Progress(Hook):
    """Collect each step's metrics one step late, so that fetching them never blocks the device.

    Args:
        config: the run's configuration.
        stage: what is trained.
        mesh: the devices.
        writer: where metrics are written.
        goodput: where time is accounted for.
        restored_step: step of the checkpoint that the run resumes from; 0 for none.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        mesh: Mesh,
        writer: MetricWriter,
        goodput: Goodput,
        *,
        restored_step: int = 0,
    ):
        self._steps = config.steps
        self._every = config.log_every
        self._raises = config.guard.nonfinite == "raise"
        self._stage = stage
        self._flops_per_unit = stage.flops_per_unit()
        self._writer = writer
        self._goodput = goodput
        self._saved_step = restored_step
        peak = flops.device_peak(mesh.devices.flat[0])
        self._peak = None if peak is None else peak * mesh.size
        if self._peak is not None:
            convention = f"{stage.flops_convention}; peak {self._peak:.3g} FLOP/s"
            writer.write_texts(0, {"MFU convention": convention})
        self._pending: tuple[int, Mapping[str, jax.Array], bool] | None = None
        self._reported_step = restored_step
        self._since = time.perf_counter()
        self._timed: dict[str, float] = dict.fromkeys(_TIMED, 0.0)
        self._unreported: dict[str, float] = dict.fromkeys((*_TIMED, "productive"), 0.0)

    @contextlib.contextmanager
    def _timing(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._timed[kind] += time.perf_counter() - start

    def waiting_for_data(self) -> contextlib.AbstractContextManager[None]:
        """Account for a block as waiting for the next batch."""
        return self._timing("data_wait")

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """Account for a block as evaluation."""
        self.flush()
        return self._timing("evaluate")

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Account for a block as saving the checkpoint of `step`."""
        with self._timing("checkpoint"):
            yield
        self._saved_step = step
        self._account()
        self._goodput.saved(step)
        self._goodput.write()

    def after_step(self, result: StepResult) -> None:
        """Report the step before `result`."""
        self.flush()
        self._pending = (result.step, result.metrics, result.is_last)

    def flush(self) -> None:
        """Report the step that was dispatched last; waits for it."""
        if self._pending is None:
            return
        (step, metrics, is_last), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if self._raises:  # every step is checked, because nothing after a bad one may be saved
            self._check_finite(step, values)
        if step % self._every == 0 or is_last:
            self._report(step, values)

    def _check_finite(self, step: int, values: Mapping[str, float]) -> None:
        bad = [f"{name} is {values[name]}" for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if bad:
            saved = f"the last good is {self._saved_step}" if self._saved_step else "there is no checkpoint yet"
            raise UserError(
                f"{' and '.join(bad)} at step {step}; nothing is saved of it ({saved}): lower optimizer.peak_lr, "
                "inspect the batch, or set guard.nonfinite=skip."
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write further metrics of a step."""
        self.flush()
        self._writer.write_scalars(step, values)

    def write_samples(self, step: int, name: str, samples: Sequence[ShownSample]) -> None:
        """Write what an evaluation generated."""
        self._writer.write_samples(step, name, samples)

    def _account(self) -> None:
        """Pass the seconds since the last call on to the goodput."""
        now = time.perf_counter()
        elapsed = self._timed | {"productive": max(0.0, now - self._since - sum(self._timed.values()))}
        for kind, seconds in elapsed.items():
            self._goodput.add(kind, seconds)
            self._unreported[kind] += seconds
        self._since = now
        self._timed = dict.fromkeys(_TIMED, 0.0)

    def _report(self, step: int, values: dict[str, float]) -> None:
        self._account()
        steps = step - self._reported_step
        seconds = max(sum(self._unreported.values()) - self._unreported["evaluate"], 1e-9)
        rate = steps * self._stage.units_per_batch / seconds
        values = values | {
            f"{self._stage.unit}_per_second": rate,
            "data_wait_share": self._unreported["data_wait"] / seconds,
            "checkpoint_share": self._unreported["checkpoint"] / seconds,
            "compile_seconds": self._goodput.current.get("compile", 0.0),
            "goodput": self._goodput.share(),
        }
        if self._peak is not None:
            values["mfu"] = rate * self._flops_per_unit / self._peak
        self._goodput.write()
        self._writer.write_scalars(step, values)
        parts = [f"step {step}/{self._steps}"]
        parts += [f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss")]
        parts.append(f"{rate:.0f} {self._stage.unit}/s")
        if "mfu" in values:
            parts.append(f"MFU {100 * values['mfu']:.1f} %")
        parts.append(f"data wait {100 * values['data_wait_share']:.0f} %")
        parts.append(f"{_clock((self._steps - step) * seconds / steps)} left")
        logging.info("%s", "  ".join(parts))
        self._unreported = dict.fromkeys(self._unreported, 0.0)
        self._reported_step = step


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
