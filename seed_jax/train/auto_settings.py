"""Fill in what a config leaves to the accelerator it runs on; none of it changes what is learnt."""

import ml_collections
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.accelerators import Accelerator
from seed_jax.models.llama.config import LlamaConfig

AUTO = "auto"
REFERENCE = LlamaConfig.seed_8b()  # the model that the accelerators' figures are for
LEAST_TOKENS = 4096  # of a microbatch on an unknown device


def resolve(
    config: ml_collections.ConfigDict, mesh: Mesh, accelerator: Accelerator | None
) -> ml_collections.ConfigDict:
    """Return a copy of `config` with "auto" and 0 replaced.

    `model.remat` and `model.attention` "auto" are the accelerator's; `optimizer.accumulation` 0 is the smallest number
    of microbatches that leaves each device no more tokens at a time than suit the accelerator.
    """
    config = config.copy_and_resolve_references()
    model = config.get("model", {})
    if model.get("remat") == AUTO:
        model.remat = accelerator.remat if accelerator else "full"
    if model.get("attention") == AUTO:
        model.attention = accelerator.attention if accelerator else "xla"
    if config.optimizer.accumulation == 0:
        tokens = (accelerator.tokens if accelerator else LEAST_TOKENS) * _smallness(model)
        rows = max(1, int(tokens) // config.data.get("sequence_length", int(tokens)))
        config.optimizer.accumulation = microbatches(config.data.batch_size, sharding.batch_shards(mesh), rows)
    return config


def _smallness(model: ml_collections.ConfigDict) -> float:
    """Return how many more tokens than of the 8B model fit: what layers keep grows with depth times width."""
    sizes = {"seed_14b": LlamaConfig.seed_14b()}.get(model.get("sizes"), REFERENCE)
    return REFERENCE.num_layers * REFERENCE.hidden_size / (sizes.num_layers * sizes.hidden_size)


def microbatches(batch_size: int, parts: int, rows: int) -> int:
    """Return the fewest equal microbatches of `batch_size` rows over `parts` with at most `rows` rows each."""
    local = max(1, batch_size // parts)
    return next(count for count in range(1, local + 1) if local % count == 0 and local // count <= max(1, rows))
