"""The training loop, one for all stages.

`train` reads in the order of a run: lock the workdir, build the mesh and the stage, restore or initialize the state,
compile the step, loop, finish. What happens around steps (metrics, evaluation, checkpoints, profiling, watchdogs) are
the hooks in `seed_jax.train.runtime`.
"""

import contextlib
import logging
import time
from collections.abc import Iterator

import flax.linen as nn
import jax
from clu import parameter_overview
from etils import epath

from seed_jax import accelerators, sharding
from seed_jax.files import AnyPath
from seed_jax.train import auto_settings
from seed_jax.train.compiled_step import make_program
from seed_jax.train.config import TrainConfig
from seed_jax.train.config.schema import to_dict
from seed_jax.train.runtime import workdir as workdirs
from seed_jax.train.runtime.best import BestTracker
from seed_jax.train.runtime.checkpointing import Checkpointer, data_has_ended
from seed_jax.train.runtime.evaluation import Evaluation
from seed_jax.train.runtime.goodput import Goodput
from seed_jax.train.runtime.hooks import Hook, StepResult
from seed_jax.train.runtime.metric_writer import MetricWriter, check_wandb
from seed_jax.train.runtime.profiling import Profiler
from seed_jax.train.runtime.progress import Progress
from seed_jax.train.runtime.resume import check_resume
from seed_jax.train.runtime.task_evaluation import task_evaluators
from seed_jax.train.runtime.watchdog import EXIT_PREEMPTED, HostMonitor, Preemption, Watchdog
from seed_jax.train.stage import Stage
from seed_jax.train.stages.registry import make_stage
from seed_jax.train.state import merge
from seed_jax.typing import Tree


def train(config: TrainConfig, workdir: epath.PathLike, stage: Stage | None = None) -> Tree:
    """Train in `workdir`, from its newest checkpoint if it has one.

    Args:
        config: the run's configuration.
        workdir: local directory or bucket.
        stage: what is trained, by default what `config.stage` names.

    Returns:
        The variables after the last step.

    Raises:
        UserError: bad input, before anything is written to a checkpoint.
        SystemExit: with code 75 after SIGTERM, once the state is saved; the same command resumes.
    """
    directory = workdirs.resolve(workdir)
    check_wandb(config.wandb.project)
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdirs.locked(directory))
        preemption = stack.enter_context(contextlib.closing(Preemption()))
        hosts = stack.enter_context(_monitored_hosts(config.watchdog.lost_seconds))
        workdirs.check_shared(directory)

        # The mesh, and what is trained on it.
        mesh = sharding.make_mesh(config.mesh.to_dict())
        config = auto_settings.resolve(config, mesh, accelerators.for_device(mesh.devices.flat[0]))
        stage = make_stage(config) if stage is None else stage
        with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES):
            variables = _train(config, directory, mesh, stage, preemption, hosts)

        # Outside the mesh: what a stage shows at the end are ordinary programs.
        stage.finish(variables, directory)
        if preemption.is_requested:
            # After the last step, so that a recipe does not start its next stage.
            logging.warning("SIGTERM: this run is complete; run the same command again for what follows it.")
            raise SystemExit(EXIT_PREEMPTED)
    return variables


def _train(
    config: TrainConfig,
    workdir: AnyPath,
    mesh: jax.sharding.Mesh,
    stage: Stage,
    preemption: Preemption,
    hosts: HostMonitor,
) -> Tree:
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        # State and data, restored or initialized.
        stage.prepare(workdir)
        program = make_program(config, stage, mesh)
        checkpointer = stack.enter_context(contextlib.closing(Checkpointer(config, stage, workdir)))
        check_resume(workdirs.last_config(workdir), config, checkpointer.last_step)
        indices = sharding.local_batch_indices(sharding.batch_sharding(mesh), stage.batch_size)
        batches = stack.enter_context(contextlib.closing(stage.batches(indices)))
        state, frozen = checkpointer.restore_or_create(program, batches)
        first_step = int(state.step)
        if first_step:
            logging.info("Resuming from step %d of %s.", first_step, checkpointer.store.directory)
        else:
            overview = parameter_overview.get_parameter_overview(program.abstract.state.trained, include_stats=False)
            logging.info("Trained parameters:\n%s", overview)
        workdirs.write_run(workdir, config, stage)
        best = BestTracker(config, workdir, first_step)
        if first_step == config.steps or data_has_ended(batches) or best.has_run_out:
            logging.info("The run has ended already, after step %d of %d.", first_step, config.steps)
            preemption.saving_from_now_on()
            return merge(state.trained, frozen)

        # The compiled step.
        goodput = Goodput(workdir, first_step=first_step)
        with goodput.timing("compile"):
            logging.info("Compiling the step ...")
            step_fn = program.compile()
        logging.info("Compiled the step in %.1f s.", goodput.current["compile"])
        workdirs.write_hlo(workdir, step_fn)
        goodput.add("startup", time.perf_counter() - started - goodput.current["compile"])

        # What happens around steps. Metrics come first: a loss that is not finite must end the run before a save.
        writer = MetricWriter(
            workdir, first_step=first_step, wandb_project=config.wandb.project, config=to_dict(config)
        )
        stack.enter_context(contextlib.closing(writer))
        progress = Progress(config, stage, mesh, writer, goodput, restored_step=first_step)
        checkpointer.start(progress, best)
        profiler = stack.enter_context(contextlib.closing(Profiler(config.profile.range, workdir)))
        watchdog = stack.enter_context(contextlib.closing(Watchdog(60.0 * config.watchdog.hung_minutes)))
        evaluators = (*stage.evaluators(), *task_evaluators(config, stage, workdir))
        best.check([evaluator.name for evaluator in evaluators])
        evaluation = Evaluation(evaluators, progress, best)
        hooks: tuple[Hook, ...] = (progress, profiler, watchdog, hosts, evaluation, checkpointer)

        batch_sharding = sharding.batch_sharding(mesh)
        preemption.saving_from_now_on()
        for step in range(first_step + 1, config.steps + 1):
            with progress.waiting_for_data():
                rows = next(batches)
                is_last = step == config.steps or data_has_ended(batches)
            for hook in hooks:
                hook.before_step(step)
            state, metrics = step_fn(state, frozen, sharding.shard_batch(rows, batch_sharding, stage.batch_size))
            is_stopping = preemption.is_reached(step)
            result = StepResult(step, state, frozen, metrics, is_last, is_stopping)
            for hook in hooks:
                hook.after_step(result)
            watchdog.beat(step)  # a long save is no hang
            if is_last or best.has_run_out:
                break
            if is_stopping:
                checkpointer.store.wait()
                logging.warning("SIGTERM: saved step %d; run the same command again to resume.", step)
                raise SystemExit(EXIT_PREEMPTED)
        progress.flush()
        _report_early_end(int(state.step), config, best)
    return merge(state.trained, frozen)


def _report_early_end(step: int, config: TrainConfig, best: BestTracker) -> None:
    if step == config.steps:
        return
    if best.has_run_out:
        metric = config.checkpoint.keep_best
        logging.info("%s has not improved since step %s: the run ends early.", metric, best.best_step)
        return
    logging.warning(
        "The data ended after step %d of %d: every sample of every component's `cycles` is trained and the last step "
        "is saved. The learning rate was scheduled for all %d steps: set steps=%d to let it end too.",
        step,
        config.steps,
        config.steps,
        step,
    )


@contextlib.contextmanager
def _monitored_hosts(lost_seconds: float) -> Iterator[HostMonitor]:
    """Monitor the other hosts; the error of a collective waits until it is known which of them is gone."""
    with contextlib.closing(HostMonitor(lost_seconds)) as hosts:
        try:
            yield hosts
        except jax.errors.JaxRuntimeError:
            hosts.collective_failed()
            raise
