"""The training loop: one for all stages.

A run, in order: check the config, take the workdir, build the mesh and the stage, restore or create the state, compile
the step, loop (step, report, save), finish.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from seed_jax import sharding
from seed_jax.checkpoint.store import Store
from seed_jax.errors import UserError
from seed_jax.train import checks, registry
from seed_jax.train import workdir as workdirs
from seed_jax.train.host_state import merge_over_hosts
from seed_jax.train.optimizer import make_optimizer, make_schedule
from seed_jax.train.preemption import EXIT_PREEMPTED, Preemption
from seed_jax.train.progress import Progress
from seed_jax.train.stages import Batches, Stage
from seed_jax.train.state import Layout, TrainState, create, join, make_layout, split
from seed_jax.train.step import make_step
from seed_jax.train.writer import MetricWriter


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Train as `config` says in `workdir`, from its newest checkpoint if it has one.

    Raises:
        UserError: bad input, before anything is written to a checkpoint.
        SystemExit: with code 75 after SIGTERM, once the state is saved; the same command continues.
    """
    workdir = Path(workdir).absolute()
    checks.check(config)
    with workdirs.locked(workdir), contextlib.closing(Preemption()) as preemption:
        mesh = sharding.make_mesh(config.mesh.to_dict())
        stage = registry.build(config, workdir)
        checks.check_batch(stage.batch_size, config.optimizer.accumulation, mesh)
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
            variables = _train(config, workdir, mesh, stage, preemption)
        # Outside the mesh: what a stage shows at the end are ordinary programs of their own.
        stage.finish(variables, workdir)


def _train(
    config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh, stage: Stage, preemption: Preemption
) -> dict[str, Any]:
    """Return the variables after the last step."""
    tx = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(stage, tx, mesh, config.precision.frozen)
    _check_whole(layout)
    store = Store(workdir, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every or None)
    cut = sharding.batch_sharding(mesh)
    batches = stage.batches(sharding.local_rows(cut, stage.batch_size))
    with contextlib.closing(store), contextlib.closing(batches):
        state, frozen = _restore_or_create(config, stage, tx, layout, store, batches)
        workdirs.prepare(workdir, config, stage)
        step_fn, compile_seconds = _compile(config, stage, tx, layout, cut)
        progress = Progress(config, stage, mesh, MetricWriter(workdir, first_step=int(state.step)), compile_seconds)
        with contextlib.closing(progress):
            fresh = state
            for step, state, position in _steps(config, fresh, frozen, batches, step_fn, cut, stage, progress):
                _evaluate(stage, step, config.steps, state, frozen, progress)
                stop = preemption.reached(step)
                if stop or step == config.steps or step % config.checkpoint.every_steps == 0:
                    progress.flush()  # a run that continues from here will not report this step again
                    with progress.saving():
                        _save(store, step, state, frozen, position, stage)
                if stop and step < config.steps:
                    store.close()
                    logging.warning("SIGTERM: saved step %d; run the same command again to continue.", step)
                    raise SystemExit(EXIT_PREEMPTED)
    return join(state.trained, frozen)


def _steps(
    config: ml_collections.ConfigDict,
    state: TrainState,
    frozen: Any,
    batches: Batches,
    step_fn: Any,
    cut: NamedSharding,
    stage: Stage,
    progress: Progress,
) -> Iterator[tuple[int, TrainState, dict[str, Any]]]:
    """Yield (step, state, position of the batches) after every step, without waiting for the device."""
    first = int(state.step)
    for step in range(first + 1, config.steps + 1):
        with progress.waiting_for_data():
            rows = next(batches)
        state, metrics = step_fn(state, frozen, sharding.place(rows, cut, stage.batch_size))
        progress.dispatched(step, metrics)
        yield step, state, batches.get_state()
    if first < config.steps:
        progress.flush()


def _evaluate(stage: Stage, step: int, steps: int, state: TrainState, frozen: Any, progress: Progress) -> None:
    for evaluator in stage.evaluators:
        if step % evaluator.every_steps == 0 or step == steps:
            found = evaluator.run(join(state.trained, frozen))
            progress.measured(step, {f"{evaluator.name}/{key}": value for key, value in found.items()})


def _restore_or_create(
    config: ml_collections.ConfigDict,
    stage: Stage,
    tx: optax.GradientTransformation,
    layout: Layout,
    store: Store,
    batches: Batches,
) -> tuple[TrainState, Any]:
    abstract = join(layout.state.trained, layout.frozen)
    found = store.restore(abstract, layout.state.optimizer, _meta(stage))
    if found is None:
        return create(stage, tx, layout, jax.random.key(config.seed))
    store.drop_after(found.step)
    batches.set_state(found.data)
    trained, frozen = split(found.params, stage.trainable)
    step = jax.device_put(np.int32(found.step), layout.state.step.sharding)
    logging.info("Continuing from step %d of %s.", found.step, store.directory)
    return TrainState(step, trained, found.optimizer), frozen


def _compile(
    config: ml_collections.ConfigDict,
    stage: Stage,
    tx: optax.GradientTransformation,
    layout: Layout,
    cut: NamedSharding,
) -> tuple[Any, float]:
    """Return the compiled step and the seconds it took."""
    schedule = make_schedule(config.optimizer, config.steps)
    step = make_step(stage, tx, schedule, config.optimizer.accumulation, config.seed)
    out = jax.tree.map(lambda leaf: leaf.sharding, layout.state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(out, None))
    batch = {
        name: jax.ShapeDtypeStruct((stage.batch_size, *row.shape), row.dtype, sharding=cut)
        for name, row in stage.row_spec.items()
    }
    start = time.perf_counter()
    compiled = jitted.lower(layout.state, layout.frozen, batch).compile()
    return compiled, time.perf_counter() - start


def _save(store: Store, step: int, state: TrainState, frozen: Any, position: dict[str, Any], stage: Stage) -> None:
    store.save(
        step,
        params=join(state.trained, frozen),
        optimizer=state.optimizer,
        data=merge_over_hosts(position),
        meta=_meta(stage),
    )


def _meta(stage: Stage) -> dict[str, Any]:
    return {"kind": stage.kind, "architecture": stage.model_config}


def _check_whole(layout: Layout) -> None:
    """Refuse a layout in which a mesh of several devices keeps a big tensor whole on each of them."""
    variables = join(layout.state.trained, layout.frozen)
    sharding.log_shardings(variables, layout.boxed_shardings)
    whole = sharding.whole_tensors(variables, layout.boxed_shardings)
    cutting = [axis for axis in ("fsdp", "tensor") if _mesh_of(layout).shape[axis] > 1]
    if whole and cutting:
        raise UserError(
            f"The sharding rules leave {', '.join(whole)} whole on every device; add a rule for their axes."
        )


def _mesh_of(layout: Layout) -> Mesh:
    return layout.state.step.sharding.mesh
