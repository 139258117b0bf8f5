"""Resolve options that a config leaves to the accelerator; none of them changes what is learned."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.accelerators import Accelerator
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.train.config import LanguageConfig, TrainConfig

AUTO = "auto"
REFERENCE = LlamaConfig.seed_8b()  # the model that the accelerators' figures are for
DEFAULT_MICROBATCH_TOKENS = 4096  # on an unknown device


def resolve(config: TrainConfig, mesh: Mesh, accelerator: Accelerator | None) -> Any:
    """Return `config` with "auto" and 0 replaced.

    `model.remat` and `model.attention` "auto" become the accelerator's; `optimizer.accumulation` 0 becomes the fewest
    microbatches that give each device no more tokens at a time than the accelerator's `microbatch_tokens`; where images
    are trained on, microbatches of one image per device.
    """
    if isinstance(config, LanguageConfig):
        model = config.model
        if model.remat == AUTO:
            model = dataclasses.replace(model, remat=accelerator.remat if accelerator else "full")
        if model.attention == AUTO:
            model = dataclasses.replace(model, attention=accelerator.attention if accelerator else "xla")
        config = dataclasses.replace(config, model=model)
    if config.optimizer.accumulation == 0:
        optimizer = dataclasses.replace(config.optimizer, accumulation=_accumulation(config, mesh, accelerator))
        config = dataclasses.replace(config, optimizer=optimizer)
    return config


def _accumulation(config: Any, mesh: Mesh, accelerator: Accelerator | None) -> int:
    rows = 1
    if isinstance(config, LanguageConfig):
        tokens = accelerator.microbatch_tokens if accelerator else DEFAULT_MICROBATCH_TOKENS
        rows = max(1, int(tokens * _relative_capacity(config)) // config.data.sequence_length)
    return count_microbatches(config.data.batch_size, sharding.num_batch_shards(mesh), rows)


def _relative_capacity(config: LanguageConfig) -> float:
    """Return how many more tokens than of the 8B model fit: saved activations grow with depth times width."""
    sizes = LlamaConfig.seed_14b() if config.model.config == "seed_14b" else REFERENCE
    return REFERENCE.num_layers * REFERENCE.hidden_size / (sizes.num_layers * sizes.hidden_size)


def count_microbatches(batch_size: int, shards: int, max_rows: int) -> int:
    """Return the fewest equal microbatches of `batch_size` rows over `shards` with at most `max_rows` rows each."""
    local = max(1, batch_size // shards)
    return next(count for count in range(1, local + 1) if local % count == 0 and local // count <= max(1, max_rows))
