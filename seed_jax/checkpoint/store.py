"""Checkpoints of a training run: Orbax, asynchronous, atomic.

checkpoints/<step>/params      every variable, by collection (params, lora, ...); readable alone for inference
checkpoints/<step>/optimizer   moments and counts of the trained variables
checkpoints/<step>/data        state of the data iterator, merged over hosts
checkpoints/<step>/meta        the architecture, to refuse a checkpoint of another model

Everything is stored with checksums (`seed_jax.checkpoint.checksums`) that are verified when it is read.
"""

import contextlib
import dataclasses
import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from seed_jax.checkpoint import checksums, lazy
from seed_jax.errors import TemporaryError, UserError
from seed_jax.files import describe, is_permanent
from seed_jax.typing import Tree

CHECKPOINTS = "checkpoints"
ARRAY_ITEMS = ("params", "optimizer")
JSON_ITEMS = ("data", "meta")
JSON_FILE = "metadata"  # Orbax's file of a JSON item
_UNFINISHED = "orbax-checkpoint-tmp"
_REMOVAL_ATTEMPTS = 100
_REMOVAL_INTERVAL_S = 0.1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A restored checkpoint."""

    step: int
    params: Tree
    optimizer: Any
    data: dict[str, Any]
    meta: dict[str, Any]


class Store:
    """Save and restore the checkpoints of one workdir.

        store = Store(workdir, keep_last=3)
        restored = store.restore(abstract_params, abstract_optimizer, meta)  # None on a first start
        store.save(step, params=params, optimizer=optimizer, data=iterator_state, meta=meta)
        store.close()

    Args:
        workdir: a local folder or a bucket (`gs://...`). Unfinished checkpoints in it are removed.
        keep_last: how many of the newest checkpoints are kept.
        keep_every: also keep the checkpoints of every multiple of this many steps.

    Attributes:
        preserved_step: a step whose checkpoint is also kept.
    """

    def __init__(self, workdir: epath.PathLike, *, keep_last: int = 3, keep_every: int | None = None):
        remote = "://" in str(workdir) or not isinstance(workdir, str | Path)
        self.directory = (epath.Path(workdir) if remote else Path(workdir).absolute()) / CHECKPOINTS
        self.directory.mkdir(parents=True, exist_ok=True)
        self.preserved_step: int | None = None
        self._remove_unfinished()
        preserved: list[policies.PreservationPolicy] = [policies.LatestN(keep_last), _PreservedStep(self)]
        if keep_every:
            preserved.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(preserved))
        handlers: dict[str, ocp.CheckpointHandler] = {name: _array_handler() for name in ARRAY_ITEMS}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in JSON_ITEMS}
        self._saving = 0
        self._is_writing = False
        self._has_failed = False
        logging.getLogger("absl").addFilter(_without_tracebacks)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def _remove_unfinished(self) -> None:
        for path in sorted(self.directory.iterdir()):
            if _UNFINISHED in path.name and jax.process_index() == 0:
                logging.warning("Removing the unfinished checkpoint %s: its writer was interrupted.", path.name)
                _remove_tree(epath.Path(path))

    def steps(self) -> list[int]:
        """Return the finished steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, *, params: Any, optimizer: Any, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start writing a checkpoint; return once the values are copied off the device and may be donated.

        Raises:
            UserError: it cannot be written, or the one before could not be; TemporaryError where that may pass.
        """
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(params, save_args=lazy.save_args(params)),
            optimizer=ocp.args.PyTreeSave(optimizer),
            data=ocp.args.JsonSave(checksums.seal(data)),
            meta=ocp.args.JsonSave(checksums.seal(meta)),
        )
        with self._failures_named():
            self._manager.wait_until_finished()
            self._saving, self._is_writing = step, True
            self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Raise what `save` raises if the last checkpoint could not be written; does not wait for its end.

        On several hosts the failure of one is known once the others have waited for it in vain.
        """
        if self._is_writing and not self._manager.is_saving_in_progress():
            self.wait()

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Turn the failure of a save into a sentence, once; `close` removes what it has left."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # a device or another host
        except Exception as error:
            if self._has_failed:
                return
            self._has_failed = True
            cause = lazy.os_error(error, self.directory / str(self._saving))
            lazy.reason_of_damage(error)  # release what the failed save holds
            saved = [step for step in self.steps() if step != self._saving]
            newest = f"the newest complete one is of step {max(saved)}" if saved else "there is no complete one yet"
            if cause is None:
                raise TemporaryError(
                    f"The checkpoint of step {self._saving} could not be written ({error}); {newest}."
                ) from error
            kind = UserError if is_permanent(cause) else TemporaryError
            raise kind(
                f"The checkpoint of step {self._saving} could not be written: {describe(cause)}; {newest}. Mend "
                "that and run the same command again."
            ) from error

    def restore(self, params: Any, optimizer: Any, meta: dict[str, Any]) -> Checkpoint | None:
        """Restore the newest readable checkpoint.

        A damaged checkpoint is skipped with a warning if an older one exists.

        Args:
            params, optimizer: abstract trees with the shardings of the present mesh, whatever mesh wrote them.
            meta: of the present run; a checkpoint of another architecture is refused.

        Returns:
            The checkpoint, or None where there is none.

        Raises:
            UserError: every checkpoint is damaged, or the newest readable one is of another architecture.
        """
        for step in reversed(self.steps()):
            restored: dict[str, Any] = {}
            stored, error = self._attempt(lambda step=step: self._read_meta(step))
            if error is None:
                _check_architecture(stored, meta, self.directory / str(step))
                restored, error = self._attempt(lambda step=step: self._read(step, params, optimizer))
            if error is None:
                return Checkpoint(step, restored["params"], restored["optimizer"], restored["data"], stored)
            self._skip(step, error)
        return None

    def _read_meta(self, step: int) -> dict[str, Any]:
        meta = checksums.unseal(self._read_item(step, "meta", ocp.args.JsonRestore()))
        meta["architecture"].keys()  # raises where it is no description of a model
        return meta

    def _read(self, step: int, params: Any, optimizer: Any) -> dict[str, Any]:
        trees = {"params": params, "optimizer": optimizer}
        values = {item: self._read_item(step, item, _restore_args(tree)) for item, tree in trees.items()}
        data = checksums.unseal(self._read_item(step, "data", ocp.args.JsonRestore()))
        return {**jax.block_until_ready(values), "data": data}

    def _read_item(self, step: int, item: str, args: Any) -> Any:
        # With the handler: the manager's `restore` ends with a barrier, at which a host that cannot read is missing.
        handler = _array_handler() if item in ARRAY_ITEMS else ocp.JsonCheckpointHandler()
        with contextlib.closing(handler):
            return handler.restore(epath.Path(self.directory / str(step) / item), args=args)

    def _attempt(self, read: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str | None]:
        """Return what `read` returns, and why it failed on this or another host, if it did."""
        value, reason = {}, None
        try:
            value = read()
        except Exception as error:
            reason = lazy.reason_of_damage(error)
        if jax.process_count() > 1:  # all hosts must take the same checkpoint
            failed = np.asarray(multihost_utils.process_allgather(np.int32(reason is not None))).reshape(-1)
            if failed.any() and reason is None:
                reason = f"host {int(failed.argmax())} cannot read it"
        return value, reason

    def _skip(self, step: int, reason: str) -> None:
        path = self.directory / str(step)
        if step == self.steps()[0]:
            raise UserError(
                f"Checkpoint {path} is damaged ({reason}) and no older one is left: remove it to start again."
            )
        logging.warning("Skipping checkpoint %s: it is damaged (%s).", path, reason)

    def drop_after(self, step: int) -> None:
        """Delete checkpoints newer than `step` (the damaged ones that `restore` skipped)."""
        for later in [other for other in self.steps() if other > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Block until the checkpoint being written is complete."""
        with self._failures_named():
            self._manager.wait_until_finished()
            self._is_writing = False

    def close(self) -> None:
        """Finish writing and release the store's resources."""
        try:
            self.wait()
        finally:
            with self._failures_named():
                self._manager.close()
            if self._has_failed and jax.process_count() == 1:
                with contextlib.suppress(OSError):
                    self._remove_unfinished()


def _remove_tree(path: epath.Path) -> None:
    """Delete a directory into which threads of a failed save may still be writing: nothing can join them."""
    for remaining in reversed(range(_REMOVAL_ATTEMPTS)):
        try:
            path.rmtree()
            return
        except OSError as error:
            if not path.exists():
                return
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or not remaining:
                raise
            time.sleep(_REMOVAL_INTERVAL_S)


def _without_tracebacks(record: logging.LogRecord) -> bool:
    """Keep Orbax from logging the traceback of every thread of a save that failed: `Store` raises one sentence."""
    return not (record.exc_info and "orbax" in record.pathname)


class _PreservedStep(policies.PreservationPolicy):
    """Preserve the store's `preserved_step`."""

    def __init__(self, store: Store):
        self._store = store

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        return [checkpoint.step == self._store.preserved_step for checkpoint in checkpoints]


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    """Write arrays uncompressed: weights shrink by a tenth only, and compression on a CPU slows the running steps."""
    return lazy.array_handler(use_compression=False)


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restore into the shapes, dtypes and shardings of an abstract tree."""
    return ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def _check_architecture(stored: dict[str, Any], present: dict[str, Any], path: Path | epath.Path) -> None:
    old, new = stored["architecture"], present["architecture"]
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if different:
        changes = "; ".join(f"{key} is {old.get(key)!r} there and {new.get(key)!r} in the config" for key in different)
        raise UserError(f"Checkpoint {path} is of another architecture: {changes}. Choose another --workdir.")
