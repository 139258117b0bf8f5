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
from seed_jax.train.runtime.goodput import Goodput
from seed_jax.train.runtime.metric_writer import MetricWriter
from seed_jax.train.stage import Stage


class Progress:
    """Collect a step's metrics one step late, so that fetching them never holds the device up."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        stage: Stage,
        mesh: Mesh,
        writer: MetricWriter,
        goodput: Goodput,
        *,
        restored_from: int | None = None,
    ):
        """Begin to report.

        Args:
            restored_from: step of the checkpoint the run goes on from.
        """
        self._steps, self._every = config.steps, config.log_every
        self._skips = config.get("guard", {}).get("nonfinite", "raise") == "skip"
        self._stage, self._writer, self._goodput, self._saved_at = stage, writer, goodput, restored_from
        compile_seconds = goodput.latest.get("compile", 0.0)
        peak, source = flops.device_peak(mesh.devices.flat[0])
        self._peak = peak * mesh.size
        convention = f"{stage.flops_convention}; peak {self._peak:.3g} FLOP/s ({source})"
        writer.write_texts(0, {"MFU convention": convention})
        logging.info("The step compiled in %.1f s.", compile_seconds)
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._spent: dict[str, float] = {}
        self._since, self._reported = time.perf_counter(), None
        self._apart = dict.fromkeys(("data_wait", "checkpoint", "evaluate"), 0.0)

    @contextlib.contextmanager
    def _apart_from_steps(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._apart[kind] += time.perf_counter() - start

    def waiting_for_data(self) -> contextlib.AbstractContextManager[None]:
        return self._apart_from_steps("data_wait")

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        self.flush()
        return self._apart_from_steps("evaluate")

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        with self._apart_from_steps("checkpoint"):
            yield
        self._saved_at = step
        self._account()
        self._goodput.saved(step)
        self._goodput.write()

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
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if not self._skips:  # every step is looked at: what follows a bad one must never be saved
            self._check_finite(step, values)
        if step % self._every == 0 or step == self._steps:
            self._report(step, values)

    def _check_finite(self, step: int, values: Mapping[str, float]) -> None:
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if bad:
            kept = "there is no checkpoint yet" if self._saved_at is None else f"the last good is {self._saved_at}"
            raise UserError(
                f"{' and '.join(f'{name} is {values[name]}' for name in bad)} at step {step}; nothing is saved of it "
                f"({kept}): lower optimizer.peak_lr, look at the batch, or set guard.nonfinite=skip."
            )

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Write what an evaluator found after `step`."""
        self.flush()
        self._writer.write_scalars(step, values)
        logging.info("step %d  %s", step, "  ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def _account(self) -> dict[str, float]:
        """Hand the seconds since the last call to the books; return them by kind."""
        now = time.perf_counter()
        apart = self._apart
        found = {**apart, "productive": max(0.0, now - self._since - sum(apart.values()))}
        for kind, seconds in found.items():
            self._goodput.add(kind, seconds)
        self._since, self._apart = now, dict.fromkeys(apart, 0.0)
        self._spent = {kind: self._spent.get(kind, 0.0) + seconds for kind, seconds in found.items()}
        return self._spent

    def _report(self, step: int, values: dict[str, Any]) -> None:
        spent, steps = self._account(), step - self._reported
        self._spent = {}
        seconds = max(sum(spent.values()) - spent["evaluate"], 1e-9)
        rate = steps * self._stage.tokens_per_batch / seconds
        values |= {
            f"{self._stage.unit}_per_second": rate,
            "mfu": rate * self._stage.flops_per_token / self._peak,
            "data_wait_share": spent["data_wait"] / seconds,
            "checkpoint_share": spent["checkpoint"] / seconds,
            "compile_seconds": self._goodput.latest.get("compile", 0.0),
            "goodput": self._goodput.share(),
        }
        self._goodput.write()
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
        self._reported = step

    def close(self) -> None:
        self._writer.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
