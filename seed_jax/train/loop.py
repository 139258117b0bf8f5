"""The training loop: one for all stages.

A run, in order: check the config, take the workdir, build the mesh and the stage, restore or create the state, compile
the step, loop (step, report, measure, save), finish.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from seed_jax import accelerators, sharding
from seed_jax.files import Directory
from seed_jax.train import auto_settings, compiled_step, validation
from seed_jax.train.runtime import checkpointing, profiling
from seed_jax.train.runtime import workdir as workdirs
from seed_jax.train.runtime.goodput import Goodput
from seed_jax.train.runtime.metric_writer import MetricWriter
from seed_jax.train.runtime.progress import Progress
from seed_jax.train.runtime.watchdog import EXIT_PREEMPTED, Hosts, Preemption, Watchdog
from seed_jax.train.stage import Batches, Stage
from seed_jax.train.stages import registry
from seed_jax.train.state import TrainState, join


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Train as `config` says in `workdir`, from its newest checkpoint if it has one.

    Raises:
        UserError: bad input, before anything is written to a checkpoint.
        SystemExit: with code 75 after SIGTERM, once the state is saved, or at the end; the same command continues.
    """
    workdir = workdirs.place(workdir)
    validation.check(config)
    with workdirs.locked(workdir), contextlib.closing(Preemption()) as preemption, _hosts(config) as hosts:
        mesh = sharding.make_mesh(config.mesh.to_dict())
        config = auto_settings.resolve(config, mesh, accelerators.of_device(mesh.devices.flat[0]))
        stage = registry.build(config, workdir)
        validation.check_batch(stage.batch_size, config.optimizer.accumulation, mesh)
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
            variables = _train(config, workdir, mesh, stage, preemption, hosts)
        # Outside the mesh: what a stage shows at the end are ordinary programs of their own.
        stage.finish(variables, workdir)
        if preemption.asked:
            # After the last step; whoever meant to go on, a recipe with its next stage, must not.
            logging.warning("SIGTERM: this run is complete; run the same command again for what comes after it.")
            raise SystemExit(EXIT_PREEMPTED)


@contextlib.contextmanager
def _hosts(config: ml_collections.ConfigDict) -> Iterator[Hosts]:
    """Watch the other hosts; an error of a collective waits for the verdict which of them is gone."""
    with contextlib.closing(Hosts(config.get("watchdog", {}).get("lost_seconds", 30.0))) as hosts:
        try:
            yield hosts
        except jax.errors.JaxRuntimeError:
            hosts.failed()
            raise


def _train(
    config: ml_collections.ConfigDict,
    workdir: Directory,
    mesh: Mesh,
    stage: Stage,
    preemption: Preemption,
    hosts: Hosts,
) -> dict[str, Any]:
    """Return the variables after the last step."""
    began = time.perf_counter()
    made = compiled_step.make(config, stage, mesh)
    store = checkpointing.open_store(config, workdir)
    batches = stage.batches(sharding.local_rows(sharding.batch_sharding(mesh), stage.batch_size))
    with contextlib.closing(store), contextlib.closing(batches):
        state, frozen, restored = checkpointing.restore_or_create(stage, made, store, batches, config.seed)
        first, fresh = int(state.step), state
        if restored:
            logging.info("Continuing from step %d of %s.", first, store.directory)
        workdirs.prepare(workdir, config, stage)
        goodput = Goodput(workdir, first_step=first)
        with goodput.timing("compile"):
            step_fn = made.compile()
        workdirs.write_hlo(workdir, step_fn)
        goodput.add("start", time.perf_counter() - began - goodput.latest["compile"])
        project = config.get("wandb", {}).get("project", "")
        writer = MetricWriter(workdir, first_step=first, wandb=project, described=config)
        progress = Progress(config, stage, mesh, writer, goodput, restored_from=first if restored else None)
        due = checkpointing.Schedule(config)
        with contextlib.closing(progress), contextlib.closing(_watchdog(config)) as watchdog:
            for step, state, position in _steps(config, workdir, fresh, frozen, batches, step_fn, stage, progress):
                for watcher in (watchdog, hosts):
                    watcher.beat(step)
                _evaluate(stage, step, config.steps, state, frozen, progress)
                stop = preemption.reached(step)
                if due.due(step) or stop:
                    progress.flush()  # a run that continues from here will not report this step again
                    with progress.saving(step):
                        checkpointing.save(store, step, state, frozen, position, stage)
                    watchdog.beat(step)
                if stop and step < config.steps:
                    store.close()
                    logging.warning("SIGTERM: saved step %d; run the same command again to continue.", step)
                    raise SystemExit(EXIT_PREEMPTED)
    return join(state.trained, frozen)


def _watchdog(config: ml_collections.ConfigDict) -> Watchdog:
    return Watchdog(60.0 * config.get("watchdog", {}).get("hung_minutes", 30.0))


def _steps(
    config: ml_collections.ConfigDict,
    workdir: Directory,
    state: TrainState,
    frozen: Any,
    batches: Batches,
    step_fn: Any,
    stage: Stage,
    progress: Progress,
) -> Iterator[tuple[int, TrainState, dict[str, Any]]]:
    """Yield (step, state, position of the batches) after every step, without waiting for the device."""
    first, cut = int(state.step), sharding.batch_sharding(state.step.sharding.mesh)
    steps = profiling.parse(config.get("profile", {}).get("steps", ""))
    with contextlib.closing(profiling.Profiler(steps, workdir)) as profiler:
        for step in range(first + 1, config.steps + 1):
            with progress.waiting_for_data():
                rows = next(batches)
            profiler.before(step)
            state, metrics = step_fn(state, frozen, sharding.place(rows, cut, stage.batch_size))
            profiler.after(step, state.step)
            progress.dispatched(step, metrics)
            yield step, state, batches.get_state()
    if first < config.steps:
        progress.flush()


def _evaluate(stage: Stage, step: int, steps: int, state: TrainState, frozen: Any, progress: Progress) -> None:
    for evaluator in stage.evaluators:
        if step % evaluator.every_steps == 0 or step == steps:
            with progress.evaluating():
                found = evaluator.run(join(state.trained, frozen))
            progress.measured(step, {f"{evaluator.name}/{key}": value for key, value in found.items()})
