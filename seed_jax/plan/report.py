"""Format a plan as text."""

import textwrap

from seed_jax.plan.planning import Plan, gib


def text(plan: Plan) -> str:
    """Describe one plan."""
    machine = f"{plan.topology}" + (f", {plan.slices} slices" if plan.slices > 1 else "")
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    options = f", remat {plan.remat}" if plan.remat else ""
    options += f", attention {plan.attention}" if plan.attention else ""
    lines = [
        f"stage {plan.stage} on {machine}: {plan.chips} chips, mesh {mesh}",
        f"batch {plan.batch_size} = {plan.rows} rows per data shard x {plan.accumulation} microbatches{options}; "
        f"compiled in {plan.compile_seconds:.0f} s",
        "",
        *_memory(plan),
    ]
    if plan.time:
        lines += ["", *_collectives(plan), "", *_time(plan)]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    rows = [
        ("parameters", memory.parameters),
        ("optimizer", memory.optimizer),
        ("batch", memory.batch),
        ("activations, gradients, buffers", memory.activations),
        ("peak", memory.peak),
        ("usable", memory.usable),
    ]
    verdict = "fits" if memory.fits else f"DOES NOT FIT: {gib(memory.peak - memory.usable)} GiB too much"
    return ["memory per chip, GiB", *(f"  {name:34}{gib(size):>8}" for name, size in rows), f"  {verdict}"]


def _collectives(plan: Plan) -> list[str]:
    lines = [f"collectives of a chip in a step{'':7}count       GB  alone, ms  overlap"]
    for row in plan.collectives:
        if row.bytes < 1e6:  # scalars and norms
            continue
        name = f"{row.kind} over {row.axes}"
        overlaps = "yes" if row.overlaps else "no"
        lines.append(f"  {name:34}{row.count:>7}{row.bytes / 1e9:>9.2f}{1e3 * row.seconds:>11.0f}  {overlaps}")
    return lines if len(lines) > 1 else ["no collectives of 1 MB or more"]


def _time(plan: Plan) -> list[str]:
    time = plan.time
    assert time is not None
    executed = plan.executed_flops / plan.model_flops if plan.model_flops else 0.0
    rate = plan.units / time.step
    return [
        f"model FLOPs of a step {plan.model_flops:.3g}; executed matmul FLOPs {executed:.2f}x that",
        f"ESTIMATE: step {time.step:.2f} s (at most {time.worst_case:.2f} s without any overlap), MFU {plan.mfu:.2f}, "
        f"{rate:.0f} {plan.unit}/s, {rate / plan.chips:.0f} per chip",
        *_error_bars(plan),
        f"  matmuls {time.matmuls:.2f} s, kernels {time.kernels:.2f} s, overlapped collectives "
        f"{time.overlapped:.2f} s, exposed collectives {time.exposed:.2f} s",
        *textwrap.wrap(f"method: {plan.method}", 110, initial_indent="  ", subsequent_indent="  "),
    ]


def _error_bars(plan: Plan) -> list[str]:
    if plan.error_bars is None:
        return ["  a roofline: no error bars are known"]
    low, high = plan.error_bars
    return [f"  error bars {low:.2f} to {high:.2f} s, by judgement from published runs (docs/scaling.md)"]
