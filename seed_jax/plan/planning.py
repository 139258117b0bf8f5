"""Compile the step that training would run, for a topology that is not here, and report what it needs."""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.plan import calibration, estimate, hlo
from seed_jax.plan.estimate import CollectiveCost, StepTime
from seed_jax.plan.executed_flops import ExecutedFlops, executed_flops
from seed_jax.plan.topology import Topology
from seed_jax.train import auto_settings
from seed_jax.train.compiled_step import TrainProgram, make_program
from seed_jax.train.config import TrainConfig
from seed_jax.train.stages.registry import make_stage

GPU_SUBSTITUTES = {"cudnn": "chunked"}  # a GPU's attention, and what the CPU's compiler gets in its place


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per chip.

    Attributes:
        parameters: trained and frozen.
        optimizer: its state.
        batch: a global batch's shard.
        peak: greatest use at any time; beyond the above it has activations, gradients and buffers.
        usable: what the chip has.
    """

    parameters: int
    optimizer: int
    batch: int
    peak: int
    usable: int

    @property
    def activations(self) -> int:
        return self.peak - self.parameters - self.optimizer - self.batch

    @property
    def fits(self) -> bool:
        return self.peak <= self.usable


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one layout of a step takes on a topology.

    Attributes:
        stage: name of the stage.
        topology: name of the topology.
        slices: joined by DCN.
        chips: of all slices.
        mesh: size of each mesh axis.
        batch_size: rows of the global batch.
        rows: rows of a microbatch on a data shard.
        accumulation: microbatches of a step.
        remat: rematerialization policy, "" where the stage has none.
        attention: implementation of attention, "" where the stage has none.
        memory: bytes per chip.
        compile_seconds: time that compilation took here.
        model_flops: of a step, by the stage's convention.
        executed_flops: matmul FLOPs that the step executes, recomputation included.
        units: tokens or images of a step.
        unit: what `units` counts.
        time: seconds of a step's parts; None where it does not fit.
        collectives: per chip.
        mfu: model FLOPs utilization by the estimate.
        error_bars: least and greatest seconds of a step to be expected; None for a roofline.
        method: how time was estimated.
        notes: what the plan takes for granted.
    """

    stage: str
    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    batch_size: int
    rows: int
    accumulation: int
    remat: str
    attention: str
    memory: Memory
    compile_seconds: float
    model_flops: float
    executed_flops: float = 0.0
    units: int = 0
    unit: str = "tokens"
    time: StepTime | None = None
    collectives: tuple[CollectiveCost, ...] = ()
    mfu: float = 0.0
    error_bars: tuple[float, float] | None = None
    method: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.fits

    @property
    def step_seconds(self) -> float:
        """Estimated seconds of a step; infinite where it does not fit."""
        return self.time.step if self.time else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dataclasses.asdict(self)
        values["memory"] |= {"activations": self.memory.activations, "fits": self.fits}
        if self.time:
            values["time"] |= {"step": self.time.step, "worst_case": self.time.worst_case}
            values[f"{self.unit}_per_second"] = self.units / self.time.step
        return values


def make(config: TrainConfig, topology: Topology, hlo_file: str | Path | None = None) -> Plan:
    """Compile one layout and estimate its cost.

    Args:
        config: as for training.
        topology: the chips.
        hlo_file: where to write the compiled program's text.

    Raises:
        UserError: the config, its mesh or its batch does not work on this topology.
    """
    mesh = sharding.make_mesh(config.mesh.to_dict(), topology.devices)
    config = auto_settings.resolve(config, mesh, topology.accelerator)
    notes = () if topology.exact else ("memory and collectives are those of the CPU's compiler for as many devices",)
    if topology.accelerator.name == "v7x":
        notes += ("v7x has two devices per chip: each counts as a chip here",)
    model: Any = getattr(config, "model", None)
    attention = getattr(model, "attention", "")
    if not topology.exact and attention in GPU_SUBSTITUTES:
        substitute = GPU_SUBSTITUTES[attention]
        changed: Any = {"model": dataclasses.replace(model, attention=substitute)}
        config = dataclasses.replace(config, **changed)
        notes += (f"attention {substitute} in place of {attention}",)
    stage = make_stage(config)
    program = make_program(config, stage, mesh)
    logging.info("Compiling for %s ...", topology.name)
    compiled, seconds, flops = _compile(program)
    plan = Plan(
        stage=config.stage,
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        mesh={str(axis): size for axis, size in mesh.shape.items()},
        batch_size=stage.batch_size,
        rows=stage.batch_size // sharding.num_batch_shards(mesh) // config.optimizer.accumulation,
        accumulation=config.optimizer.accumulation,
        remat=str(getattr(model, "remat", "")),
        attention=attention,
        memory=_memory(program, compiled, topology),
        compile_seconds=seconds,
        model_flops=stage.flops_per_unit() * stage.units_per_batch,
        executed_flops=flops.matmuls + flops.kernels,
        units=stage.units_per_batch,
        unit=stage.unit,
        notes=notes,
    )
    if isinstance(compiled, int):
        return plan
    text = compiled.as_text() or ""
    if hlo_file:
        Path(hlo_file).write_text(text, encoding="utf-8")
    return _with_time(plan, hlo.parse(text), flops, mesh, topology)


def _compile(program: TrainProgram) -> tuple[jax.stages.Compiled | int, float, ExecutedFlops]:
    """Return the compiled step, or the bytes it would need where it does not fit; seconds taken; executed FLOPs."""
    start = time.perf_counter()
    traced = program.trace()
    flops = executed_flops(traced)
    try:
        compiled = program.compile(traced)
    except jax.errors.JaxRuntimeError as error:
        needed = hlo.memory_needed(str(error))
        if needed is None:
            raise
        compiled = needed
    return compiled, time.perf_counter() - start, flops


def _with_time(plan: Plan, module: hlo.Module, flops: ExecutedFlops, mesh: Mesh, topology: Topology) -> Plan:
    rows = estimate.collective_costs(hlo.collectives(module), mesh, topology)
    step_time = estimate.step_time(module, flops, rows, topology)
    chip = topology.accelerator
    is_roofline = not chip.clock_hz
    low, high = calibration.error_bars(chip)
    return dataclasses.replace(
        plan,
        time=step_time,
        collectives=tuple(rows),
        mfu=plan.model_flops / (step_time.step * topology.chips * chip.peak_flops),
        error_bars=None if is_roofline else (low * step_time.step, high * step_time.step),
        method=estimate.ROOFLINE_METHOD if is_roofline else estimate.METHOD,
    )


def _memory(program: TrainProgram, compiled: jax.stages.Compiled | int, topology: Topology) -> Memory:
    if isinstance(compiled, int):
        peak = compiled
    else:
        analysis: Any = compiled.memory_analysis()
        peak = analysis.peak_memory_in_bytes or analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    abstract = program.abstract
    return Memory(
        parameters=_local_bytes((abstract.state.trained, abstract.frozen)),
        optimizer=_local_bytes(abstract.state.optimizer),
        batch=_local_bytes(program.batch),
        peak=peak,
        usable=topology.accelerator.memory,
    )


def _local_bytes(tree: Any) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def search(config: TrainConfig, topology: Topology, log: Callable[[str], None] = lambda line: None) -> list[Plan]:
    """Try microbatches, remat policies and meshes.

    Returns:
        The plans that fit, least time per unit first.
    """
    plans = []
    for candidate in _candidates(config, topology):
        try:
            plan = make(candidate, topology)
        except UserError as error:
            log(f"skipped: {error}")
            continue
        log(summary(plan))
        plans.append(plan)
    return sorted((plan for plan in plans if plan.fits), key=lambda plan: plan.step_seconds / plan.units)


def _candidates(config: TrainConfig, topology: Topology) -> list[TrainConfig]:
    batch_size = make_stage(config).batch_size
    model: Any = getattr(config, "model", None)
    if not isinstance(getattr(model, "remat", None), str):
        raise UserError(f"--search varies model.remat of language stages; stage {config.stage} has none.")
    candidates = []
    for tensor in (1, 2, 4):
        if topology.chips % (topology.slices * tensor):
            continue
        shards = topology.chips // tensor
        mesh = dataclasses.replace(config.mesh, replica=topology.slices, fsdp=-1, tensor=tensor)
        local = batch_size // shards
        for remat in ("save_qkv", "full"):
            for rows in [rows for rows in (1, 2, 4, 8) if rows <= local and local % rows == 0]:
                optimizer = dataclasses.replace(config.optimizer, accumulation=local // rows)
                changed: Any = {
                    "mesh": mesh,
                    "optimizer": optimizer,
                    "model": dataclasses.replace(model, remat=remat),
                }
                candidates.append(dataclasses.replace(config, **changed))
    if not candidates:
        raise UserError(
            f"data.batch_size is {batch_size}, too small for {topology.chips} chips with a tensor axis of up to 4: "
            "give --batch."
        )
    return candidates


def summary(plan: Plan) -> str:
    """Return one line: the layout, and whether and how fast it runs."""
    layout = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1 device"
    head = f"{layout}, {plan.rows} rows x {plan.accumulation}, remat {plan.remat}: {gib(plan.memory.peak)} GiB"
    if not plan.fits:
        return f"{head}, does not fit {gib(plan.memory.usable)} GiB"
    return f"{head}, about {plan.step_seconds:.2f} s per step, MFU {plan.mfu:.2f} (estimate)"


def gib(size: int) -> str:
    """Format bytes as GiB."""
    return f"{size / 2**30:.2f}"
