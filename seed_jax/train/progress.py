"""What a run tells while it goes: losses, throughput, MFU, waiting, time left."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from seed_jax.errors import UserError
from seed_jax.train import flops
from seed_jax.train.stages import Stage
from seed_jax.train.writer import MetricWriter


class Progress:
    """Collect a step's metrics one step late, so that fetching them never holds the device up."""

    def __init__(
        self, config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh, writer: MetricWriter, compile_seconds: float
    ):
        self._steps, self._every = config.steps, config.log_every
        self._stage, self._writer, self._compile_seconds = stage, writer, compile_seconds
        peak, source = flops.device_peak(mesh.devices.flat[0])
        self._peak = peak * mesh.size
        convention = f"{stage.flops_convention}; peak {self._peak:.3g} FLOP/s ({source})"
        writer.write_texts(0, {"MFU convention": convention})
        logging.info("The step compiled in %.1f s.", compile_seconds)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._since, self._reported, self._waited, self._saved = time.perf_counter(), None, 0.0, 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._saved += time.perf_counter() - start

    def dispatched(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Note that `step` runs on the device, and report the step before it."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Report the step that was dispatched last; waits for it."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        if self._reported is None:
            self._reported = step - 1
        if step % self._every and step != self._steps:
            return
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"The loss is {values['loss']} at step {step}: lower optimizer.peak_lr or look at the batch; the run "
                "can be continued from its last checkpoint."
            )
        self._report(step, values)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Write what an evaluator found after `step`."""
        self.flush()
        self._writer.write_scalars(step, values)
        logging.info("step %d  %s", step, "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
        self._since = time.perf_counter()

    def _report(self, step: int, values: dict[str, Any]) -> None:
        now = time.perf_counter()
        seconds, steps = max(now - self._since, 1e-9), step - self._reported
        rate = steps * self._stage.tokens_per_batch / seconds
        values |= {
            f"{self._stage.unit}_per_second": rate,
            "mfu": rate * self._stage.flops_per_token / self._peak,
            "data_wait_share": self._waited / seconds,
            "checkpoint_share": self._saved / seconds,
            "compile_seconds": self._compile_seconds,
        }
        self._writer.write_scalars(step, values)
        left = (self._steps - step) * seconds / steps
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss"))
        logging.info(
            "step %d/%d  %s  %.0f %s/s  MFU %.1f %%  waiting for data %.0f %%  %s left",
            *(
                step,
                self._steps,
                shown,
                rate,
                self._stage.unit,
                100 * values["mfu"],
                100 * values["data_wait_share"],
                _clock(left),
            ),
        )
        self._since, self._reported, self._waited, self._saved = now, step, 0.0, 0.0

    def close(self) -> None:
        self._writer.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
