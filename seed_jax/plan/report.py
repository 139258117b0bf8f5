"""A plan as text."""

import textwrap

from seed_jax.plan import estimate
from seed_jax.plan.planning import Plan, gib


def text(plan: Plan) -> str:
    """Describe one plan."""
    machine = f"{plan.topology}" + (f", {plan.slices} slices" if plan.slices > 1 else "")
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"stage {plan.stage} on {machine}: {plan.chips} chips, mesh {mesh}",
        f"batch {plan.batch_size} = {plan.rows} rows a data shard x {plan.accumulation} microbatches, "
        f"remat {plan.remat}, attention {plan.attention}; compiled in {plan.compile_seconds:.0f} s",
        "",
        *_memory(plan),
    ]
    if plan.seconds:
        lines += ["", *_exchanges(plan), "", *_time(plan)]
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
    return ["memory of a chip, GiB", *(f"  {name:34}{gib(size):>8}" for name, size in rows), f"  {verdict}"]


def _exchanges(plan: Plan) -> list[str]:
    lines = [f"exchanges of a chip in a step{'':9}times       GB  alone, ms  overlaps"]
    for row in plan.exchanges:
        if row.bytes < 1e6:  # scalars and norms
            continue
        name = f"{row.kind} over {row.axes}"
        overlaps = "yes" if row.overlaps else "no"
        lines.append(f"  {name:34}{row.count:>7}{row.bytes / 1e9:>9.2f}{1e3 * row.seconds:>11.0f}  {overlaps}")
    return lines if len(lines) > 1 else ["no exchanges of 1 MB or more"]


def _time(plan: Plan) -> list[str]:
    parts = plan.seconds
    work = plan.work_flops / plan.model_flops if plan.model_flops else 0.0
    rate = plan.tokens / parts.step
    return [
        f"model FLOPs of a step {plan.model_flops:.3g} (causal convention); matrix products done {work:.2f}x that",
        f"ESTIMATE: step {parts.step:.2f} s (at most {parts.most:.2f} s without any overlap), MFU {plan.mfu:.2f}, "
        f"{rate:.0f} {plan.unit}/s, {rate / plan.chips:.0f} a chip",
        f"  products {parts.products:.2f} s, kernels {parts.kernels:.2f} s, overlapping exchanges "
        f"{parts.overlapping:.2f} s, other exchanges {parts.exposed:.2f} s",
        *textwrap.wrap(f"method: {estimate.METHOD}", 110, initial_indent="  ", subsequent_indent="  "),
    ]
