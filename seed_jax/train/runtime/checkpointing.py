"""When to save a checkpoint, what it holds, and how to resume from it."""

import json
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from seed_jax.checkpoint.store import Store
from seed_jax.data.batches import resume_state
from seed_jax.files import AnyPath
from seed_jax.train.compiled_step import TrainProgram
from seed_jax.train.config import TrainConfig
from seed_jax.train.runtime.best import BestTracker
from seed_jax.train.runtime.hooks import Hook, StepResult
from seed_jax.train.runtime.progress import Progress
from seed_jax.train.stage import Batches, Stage
from seed_jax.train.state import TrainState, create, merge, partition
from seed_jax.typing import Tree


class CheckpointSchedule:
    """Which steps to save: every so many steps and every so many minutes."""

    def __init__(self, config: TrainConfig):
        self._every_steps = config.checkpoint.every_steps
        self._every_minutes = config.checkpoint.every_minutes
        self._check_clock_every = config.log_every
        self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`; all hosts get the same answer."""
        due = step % self._every_steps == 0 or self._time_is_up(step)
        if due:
            self._saved_at = time.monotonic()
        return due

    def _time_is_up(self, step: int) -> bool:
        # Clocks differ between hosts: that of host 0 decides. Asking it is a collective, hence not after every step.
        if not self._every_minutes or step % self._check_clock_every:
            return False
        is_up = time.monotonic() - self._saved_at > 60 * self._every_minutes
        return bool(multihost_utils.broadcast_one_to_all(np.int32(is_up))) if jax.process_count() > 1 else is_up


class Checkpointer(Hook):
    """Save checkpoints while training, and resume from the newest.

    Args:
        config: the run's configuration.
        stage: what is trained.
        workdir: directory of the run.
    """

    def __init__(self, config: TrainConfig, stage: Stage, workdir: AnyPath):
        self.store = Store(
            workdir, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every or None
        )
        self._seed = config.seed
        self._schedule = CheckpointSchedule(config)
        self._stage = stage
        self._meta = {"kind": stage.kind, "architecture": stage.model_config()}
        self._batches: Batches | None = None
        self._progress: Progress | None = None
        self._best: BestTracker | None = None

    @property
    def last_step(self) -> int | None:
        """The newest finished checkpoint, or None."""
        return max(self.store.steps(), default=None)

    def restore_or_create(self, program: TrainProgram, batches: Batches) -> tuple[TrainState, Tree]:
        """Return (state, frozen variables) of the newest readable checkpoint, or initialized for step 0.

        The position of `batches` is restored with them.
        """
        self._batches = batches
        abstract = program.abstract
        checkpoint = self.store.restore(abstract.variables, abstract.state.optimizer, self._meta)
        if checkpoint is None:
            return create(self._stage, program.optimizer, abstract, jax.random.key(self._seed))
        self.store.drop_after(checkpoint.step)
        batches.set_state(checkpoint.data)
        trained, frozen = partition(checkpoint.params, self._stage.is_trainable)
        step = jax.device_put(np.int32(checkpoint.step), abstract.state.step.sharding)
        return TrainState(step, trained, checkpoint.optimizer), frozen

    def start(self, progress: Progress, best: BestTracker) -> None:
        """Account for the time of saving in `progress`; save and keep the best evaluations."""
        self._progress, self._best = progress, best

    def after_step(self, result: StepResult) -> None:
        assert self._progress is not None
        assert self._best is not None
        self.store.check()
        is_best = self._best.best_step == result.step
        is_end = result.is_last or result.is_stopping or self._best.has_run_out
        if self._schedule.is_due(result.step) or is_best or is_end:
            self._progress.flush()  # a run resumed from here will not report this step again
            self.store.preserved_step = self._best.best_step
            with self._progress.saving(result.step):
                self.save(result)
            if is_best:
                self.store.wait()  # best.json names finished checkpoints only
            self._best.write()

    def save(self, result: StepResult) -> None:
        """Start writing a checkpoint."""
        assert self._batches is not None
        self.store.save(
            result.step,
            params=merge(result.state.trained, result.frozen),
            optimizer=result.state.optimizer,
            data=merge_over_hosts(self._batches.get_state()),
            meta=self._meta,
        )

    def close(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.store.close()


def data_has_ended(batches: Batches) -> bool:
    """Whether no host has a further sample; every host calls this at the same step."""
    ended = resume_state.has_ended(batches.get_state())
    if ended is None or jax.process_count() == 1:
        return bool(ended)
    return bool(np.all(multihost_utils.process_allgather(np.int32(ended))))


def merge_over_hosts(state: dict[str, Any]) -> dict[str, Any]:
    """Return the position of the batches of all hosts; every host calls this at the same step."""
    if jax.process_count() == 1:
        return state
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(text.size))))
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: text.size] = text
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return resume_state.merge_states([json.loads(row.tobytes()) for row in gathered])
