"""Refuse a config that cannot work, naming every problem at once, before anything is built."""

import ml_collections
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.train.runtime import profiling
from seed_jax.train.stages import registry

_POSITIVE = (
    "steps",
    "log_every",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "data.batch_size",
    "optimizer.peak_lr",
)
_NOT_NEGATIVE = (
    "optimizer.accumulation",  # 0: as many as the accelerator's memory asks for
    "optimizer.clip_norm",  # 0 leaves clipping out
)
_SCHEDULE_RATIOS = {"warmup_cosine": "optimizer.warmup_ratio", "epochs": "optimizer.warmup_start_ratio"}
_RATIOS = ("optimizer.min_lr_ratio", "optimizer.b1", "optimizer.b2")
MOST_B2_IN_16_BITS = 0.99  # bfloat16 tells values 1/256 apart
_DTYPES = ("precision.frozen", "precision.compute")


def check(config: ml_collections.ConfigDict) -> None:
    """Raise one UserError listing everything wrong with the values of `config`."""
    problems = [f"{key} is {get(config, key)!r}, expected more than 0" for key in _POSITIVE if get(config, key) <= 0]
    problems += [f"{key} is {get(config, key)!r}, expected 0 or more" for key in _NOT_NEGATIVE if get(config, key) < 0]
    schedule = config.optimizer.get("schedule", "warmup_cosine")
    if schedule not in _SCHEDULE_RATIOS:
        problems.append(f"optimizer.schedule is {schedule!r}, expected one of {', '.join(_SCHEDULE_RATIOS)}")
    ratios = [*_RATIOS, *([_SCHEDULE_RATIOS[schedule]] if schedule in _SCHEDULE_RATIOS else [])]
    problems += [f"{key} is {get(config, key)!r}, expected 0 to 1" for key in ratios if not 0 <= get(config, key) <= 1]
    problems += [
        f"{key} is {get(config, key)!r}, expected float32 or bfloat16"
        for key in _DTYPES
        if get(config, key) not in ("float32", "bfloat16")
    ]
    problems += _option_problems(config)
    if config.stage not in registry.STAGES:
        problems.append(f"stage is {config.stage!r}, expected one of {', '.join(registry.STAGES)}")
    if problems:
        raise UserError(f"The config cannot be run: {'; '.join(problems)}.")


def _option_problems(config: ml_collections.ConfigDict) -> list[str]:
    """Look at keys that not every config has."""
    optimizer, guard = config.optimizer, config.get("guard", {"nonfinite": "raise", "spike": 0.0})
    problems = []
    if guard["nonfinite"] not in ("raise", "skip"):
        problems.append(f"guard.nonfinite is {guard['nonfinite']!r}, expected raise or skip")
    if guard["spike"] < 0:
        problems.append(f"guard.spike is {guard['spike']!r}, expected 0 or more")
    if optimizer.get("moments", "float32") not in ("float32", "bfloat16"):
        problems.append(f"optimizer.moments is {optimizer.moments!r}, expected float32 or bfloat16")
    elif optimizer.get("moments") == "bfloat16" and optimizer.b2 > MOST_B2_IN_16_BITS:
        problems.append(
            f"optimizer.b2 is {optimizer.b2}, expected at most {MOST_B2_IN_16_BITS} with optimizer.moments=bfloat16: a "
            "step's share of the second moment would be rounded away"
        )
    profiling.parse(config.get("profile", {}).get("steps", ""))
    return problems


def get(config: ml_collections.ConfigDict, key: str) -> object:
    """Read a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raise if the global batch cannot be cut over the mesh and into microbatches."""
    parts = sharding.batch_shards(mesh)
    if batch_size % (parts * accumulation):
        raise UserError(
            f"data.batch_size is {batch_size}, expected a multiple of {parts * accumulation} "
            f"(mesh.replica * mesh.fsdp = {parts} times optimizer.accumulation = {accumulation})."
        )
