"""When to save, and what."""

import json
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from seed_jax.checkpoint.store import Store
from seed_jax.data.batches.resume_state import merge_states
from seed_jax.train.compiled_step import Program
from seed_jax.train.stage import Batches, Stage
from seed_jax.train.state import TrainState, create, join, split


class Schedule:
    """Say after which steps to save: every so many, every so many minutes, and the last."""

    def __init__(self, config: ml_collections.ConfigDict):
        self._steps, self._every = config.steps, config.checkpoint.every_steps
        self._minutes, self._look_every = config.checkpoint.get("every_minutes", 0.0), config.log_every
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after `step`; all hosts get the same answer."""
        due = step == self._steps or step % self._every == 0 or self._time_is_up(step)
        self._last = time.monotonic() if due else self._last
        return due

    def _time_is_up(self, step: int) -> bool:
        # Clocks differ: the first host's counts, and asking it costs a little, hence not after every step.
        if not self._minutes or step % self._look_every:
            return False
        up = time.monotonic() - self._last > 60 * self._minutes
        return bool(multihost_utils.broadcast_one_to_all(np.int32(up))) if jax.process_count() > 1 else up


def open_store(config: ml_collections.ConfigDict, workdir: Any) -> Store:
    keep = config.checkpoint
    return Store(workdir, keep_last=keep.keep_last, keep_every=keep.keep_every or None)


def save(store: Store, step: int, state: TrainState, frozen: Any, position: dict[str, Any], stage: Stage) -> None:
    store.save(
        step,
        params=join(state.trained, frozen),
        optimizer=state.optimizer,
        data=merge_over_hosts(position),
        meta=_meta(stage),
    )


def restore_or_create(
    stage: Stage, made: Program, store: Store, batches: Batches, seed: int
) -> tuple[TrainState, Any, bool]:
    """Return (state, frozen, whether they are of a checkpoint)."""
    layout = made.layout
    found = store.restore(join(layout.state.trained, layout.frozen), layout.state.optimizer, _meta(stage))
    if found is None:
        return *create(stage, made.optimizer, layout, jax.random.key(seed)), False
    store.drop_after(found.step)
    batches.set_state(found.data)
    trained, frozen = split(found.params, stage.trainable)
    step = jax.device_put(np.int32(found.step), layout.state.step.sharding)
    return TrainState(step, trained, found.optimizer), frozen, True


def _meta(stage: Stage) -> dict[str, Any]:
    return {"kind": stage.kind, "architecture": stage.model_config}


def merge_over_hosts(state: dict[str, Any]) -> dict[str, Any]:
    """Return the position of all lanes; every host calls this at the same step."""
    if jax.process_count() == 1:
        return state
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int32(text.size)).max())
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: text.size] = text
    return merge_states([json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)])
