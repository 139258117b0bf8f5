"""Checkpoints of a training run: Orbax, asynchronous, written whole or not at all.

checkpoints/<step>/params      every variable (collection first: params, lora, ...); readable alone for inference
checkpoints/<step>/optimizer   moments and counts of the trained variables
checkpoints/<step>/data        position of the batches, merged over hosts
checkpoints/<step>/meta        what was trained, to refuse a checkpoint of something else
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from seed_jax.checkpoint import lazy
from seed_jax.errors import UserError

FOLDER = "checkpoints"
_UNFINISHED = "orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One restored checkpoint."""

    step: int
    params: Any
    optimizer: Any
    data: dict[str, Any]
    meta: dict[str, Any]


class Store:
    """Save and restore the checkpoints of one workdir."""

    def __init__(self, workdir: epath.PathLike, *, keep_last: int = 3, keep_every: int | None = None):
        """Open the store, in a local folder or a bucket (`gs://...`), and clear away what was half written."""
        remote = "://" in str(workdir) or not isinstance(workdir, str | Path)
        self.directory = (epath.Path(workdir) if remote else Path(workdir).absolute()) / FOLDER
        self.directory.mkdir(parents=True, exist_ok=True)
        self._drop_unfinished()
        kept = [policies.LatestN(keep_last)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(kept))
        handlers = {name: _arrays() for name in ("params", "optimizer")}
        handlers |= {name: ocp.JsonCheckpointHandler() for name in ("data", "meta")}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def _drop_unfinished(self) -> None:
        for path in sorted(self.directory.iterdir()):
            if _UNFINISHED in path.name and jax.process_index() == 0:
                logging.warning("Skipping the half-written checkpoint %s: its writer was stopped.", path.name)
                epath.Path(path).rmtree()

    def steps(self) -> list[int]:
        """Return the finished steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, *, params: Any, optimizer: Any, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start writing a checkpoint; returns once the values are off the device (training may change them)."""
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(params, save_args=lazy.chunks(params)),
            optimizer=ocp.args.PyTreeSave(optimizer),
            data=ocp.args.JsonSave(data),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items, force=True)

    def restore(self, params: Any, optimizer: Any, meta: dict[str, Any]) -> Checkpoint | None:
        """Read the newest checkpoint that is whole; None where there is none.

        Args:
            params, optimizer: abstract trees with the shardings of the present mesh, whatever mesh wrote them.
            meta: of the present run; a checkpoint whose architecture differs is refused.

        A damaged checkpoint is skipped with a message if an older one exists.
        """
        for step in reversed(self.steps()):
            try:
                stored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
            except (OSError, ValueError, KeyError) as error:
                self._skip(step, error)
                continue
            _check_architecture(stored, meta, self.directory / str(step))
            items = ocp.args.Composite(
                params=_laid_out(params),
                optimizer=_laid_out(optimizer),
                data=ocp.args.JsonRestore(),
            )
            try:
                found = self._manager.restore(step, args=items)
            except (OSError, ValueError, KeyError) as error:
                self._skip(step, error)
                continue
            return Checkpoint(step, found.params, found.optimizer, found.data, stored)
        return None

    def _skip(self, step: int, error: Exception) -> None:
        reason = str(error).splitlines()[0]
        if step == self.steps()[0]:
            path = self.directory / str(step)
            raise UserError(
                f"Checkpoint {path} is damaged ({reason}) and no older one is left: remove it to start again."
            ) from error
        logging.warning("Skipping the damaged checkpoint %d (%s).", step, reason)

    def drop_after(self, step: int) -> None:
        """Remove checkpoints newer than `step` (the damaged ones that `restore` skipped)."""
        for later in [other for other in self.steps() if other > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and stop."""
        self.wait()
        self._manager.close()


def _arrays() -> ocp.PyTreeCheckpointHandler:
    """Write arrays as they are: weights compress by a tenth, and on a CPU that would slow the steps meanwhile."""
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def _laid_out(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restore into the shapes, dtypes and shardings of an abstract tree."""
    return ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def _check_architecture(stored: dict[str, Any], present: dict[str, Any], path: Path | epath.Path) -> None:
    old, new = stored["architecture"], present["architecture"]
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if different:
        listed = "; ".join(f"{key} is {old.get(key)!r} there and {new.get(key)!r} in the config" for key in different)
        raise UserError(f"Checkpoint {path} is of another architecture: {listed}. Choose another --workdir.")
