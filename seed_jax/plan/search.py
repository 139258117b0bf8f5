"""Look for the layout of a step that takes least time a token and fits."""

from collections.abc import Callable

import ml_collections

from seed_jax.errors import UserError
from seed_jax.plan import planning
from seed_jax.plan.topology import Topology


def run(
    config: ml_collections.ConfigDict, topology: Topology, say: Callable[[str], None] = lambda line: None
) -> list[planning.Plan]:
    """Try microbatches, remat policies and meshes; return what fits, least time per token first."""
    found = []
    for candidate in _candidates(config, topology):
        try:
            plan = planning.make(candidate, topology)
        except UserError as error:
            say(f"left out: {error}")
            continue
        say(planning.summary(plan))
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
