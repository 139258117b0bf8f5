"""Compile the step that training would run, for a machine that is not here, and report what it needs and does."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.plan import estimate, hlo, work
from seed_jax.plan.estimate import Exchange, Seconds
from seed_jax.plan.topology import Topology
from seed_jax.train import auto_settings, compiled_step, validation
from seed_jax.train.stages import registry

GPU_STAND_INS = {"cudnn": "chunked"}  # a GPU's kernel, and what the CPU's compiler gets in its place


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip. `peak` is the most at any time; beyond what is kept it has activations and gradients."""

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
    """What one layout of a step on a machine comes to; without `seconds` where it does not fit."""

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
    work_flops: float = 0.0
    tokens: int = 0
    unit: str = "tokens"
    seconds: Seconds | None = None
    exchanges: tuple[Exchange, ...] = ()
    mfu: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.fits

    def to_dict(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        found["memory"] |= {"activations": self.memory.activations, "fits": self.fits}
        if self.seconds:
            found["seconds"] |= {"step": self.seconds.step, "most": self.seconds.most}
            found["tokens_per_second"] = self.tokens / self.seconds.step
        return found | {"method": estimate.METHOD}


def make(config: ml_collections.ConfigDict, topology: Topology, hlo_file: str | None = None) -> Plan:
    """Compile and measure one layout.

    Args:
        hlo_file: where to write the compiled program's text.

    Raises:
        UserError: the config, its mesh or its batch cannot work on this topology.
    """
    mesh = sharding.make_mesh(config.mesh.to_dict(), topology.devices)
    config = auto_settings.resolve(config, mesh, topology.accelerator)
    validation.check(config)
    notes = () if topology.exact else ("memory and exchanges are those of the CPU's compiler for as many devices",)
    wanted = config.model.get("attention", "")
    if not topology.exact and wanted in GPU_STAND_INS:
        config.model.attention = GPU_STAND_INS[wanted]
        notes += (f"attention {config.model.attention} stands in for {wanted}",)
    stage = registry.sketch(config)
    validation.check_batch(stage.batch_size, config.optimizer.accumulation, mesh)
    step = compiled_step.make(config, stage, mesh)
    compiled, seconds, work_done = _compile(step)
    memory = _memory(step, compiled, topology)
    plan = Plan(
        stage=config.stage,
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        mesh=dict(mesh.shape),
        batch_size=stage.batch_size,
        rows=stage.batch_size // sharding.batch_shards(mesh) // config.optimizer.accumulation,
        accumulation=config.optimizer.accumulation,
        remat=str(config.model.get("remat", "")),
        attention=wanted,
        memory=memory,
        compile_seconds=seconds,
        model_flops=stage.flops_per_token * stage.tokens_per_batch,
        tokens=stage.tokens_per_batch,
        unit=stage.unit,
        notes=notes,
    )
    if isinstance(compiled, int):
        return plan
    text = compiled.as_text()
    if hlo_file:
        Path(hlo_file).write_text(text, encoding="utf-8")
    return _timed(plan, hlo.parse(text), work_done, mesh, topology)


def _compile(step: compiled_step.Program) -> tuple[jax.stages.Compiled | int, float, work.Work]:
    """Return the compiled step, or the bytes it would need where it does not fit; and the seconds it took."""
    start = time.perf_counter()
    traced = step.trace()
    done = work.of(traced)
    try:
        compiled = traced.lower().compile(compiler_options=dict(step.options) or None)
    except jax.errors.JaxRuntimeError as error:
        needed = hlo.memory_needed(str(error))
        if needed is None:
            raise
        compiled = needed
    return compiled, time.perf_counter() - start, done


def _timed(plan: Plan, module: hlo.Module, done: work.Work, mesh: Mesh, topology: Topology) -> Plan:
    rows = estimate.exchanges(hlo.collectives(module), mesh, topology)
    seconds = estimate.seconds(module, done, rows, topology)
    return dataclasses.replace(
        plan,
        work_flops=done.products + done.kernels,
        seconds=seconds,
        exchanges=tuple(rows),
        mfu=plan.model_flops / (seconds.step * topology.chips * topology.accelerator.peak),
    )


def _memory(step: compiled_step.Program, compiled: jax.stages.Compiled | int, topology: Topology) -> Memory:
    local = lambda tree: sum(map(_local_bytes, jax.tree.leaves(tree)))  # noqa: E731
    parameters, batch = local((step.layout.state.trained, step.layout.frozen)), local(step.batch)
    if isinstance(compiled, int):
        peak = compiled
    else:
        found = compiled.memory_analysis()
        peak = found.peak_memory_in_bytes or found.argument_size_in_bytes + found.temp_size_in_bytes
    return Memory(parameters, local(step.layout.state.optimizer), batch, peak, topology.accelerator.memory)


def _local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize


def summary(plan: Plan) -> str:
    """Return one line: the layout, and whether and how it goes."""
    layout = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1 device"
    head = f"{layout}, {plan.rows} rows x {plan.accumulation}, remat {plan.remat}: {gib(plan.memory.peak)} GiB"
    if not plan.fits:
        return f"{head}, does not fit {gib(plan.memory.usable)} GiB"
    return f"{head}, about {plan.seconds.step:.2f} s a step, MFU {plan.mfu:.2f} (estimate)"


def gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def search(
    config: ml_collections.ConfigDict, topology: Topology, say: Callable[[str], None] = lambda line: None
) -> list[Plan]:
    """Try microbatches, remat policies and meshes; return what fits, least time per token first."""
    found = []
    for candidate in _candidates(config, topology):
        try:
            plan = make(candidate, topology)
        except UserError as error:
            say(f"left out: {error}")
            continue
        say(summary(plan))
        found.append(plan)
    fitting = [plan for plan in found if plan.fits]
    return sorted(fitting, key=lambda plan: plan.seconds.step / plan.tokens)


def _candidates(config: ml_collections.ConfigDict, topology: Topology) -> list[ml_collections.ConfigDict]:
    candidates = []
    for tensor in (1, 2, 4):
        mesh = {"replica": topology.slices, "fsdp": -1, "tensor": tensor}
        if topology.chips % (topology.slices * tensor):
            continue
        shards = topology.chips // tensor
        for remat in ("save_qkv", "full"):
            most = config.data.batch_size // shards if config.data.batch_size >= shards else 0
            for rows in [rows for rows in (1, 2, 4, 8) if rows <= most and most % rows == 0]:
                one = config.copy_and_resolve_references()
                one.mesh.update(mesh)
                one.model.remat = remat
                one.optimizer.accumulation = most // rows
                candidates.append(one)
    if not candidates:
        raise UserError(
            f"data.batch_size is {config.data.batch_size}, too small for {topology.chips} chips with any tensor axis "
            "up to 4: give --batch."
        )
    return candidates
