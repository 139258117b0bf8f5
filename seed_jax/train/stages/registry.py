"""The stages by name. A stage's module is imported only when it is asked for."""

import importlib
from pathlib import Path

import ml_collections
from etils import epath

from seed_jax.errors import UserError
from seed_jax.train.stage import Stage

# name -> module with `build(config, workdir) -> Stage`
STAGES = {
    "pretrain": "seed_jax.train.stages.language",
    "pretrain_full": "seed_jax.train.stages.language",
    "sft": "seed_jax.train.stages.language",
    "qformer": "seed_jax.train.stages.qformer",
    "codebook": "seed_jax.train.stages.codebook.stage",
    "decoder": "seed_jax.train.stages.decoder.stage",
    "world_teacher": "seed_jax.quickstart.teacher_stage",
}


def build(config: ml_collections.ConfigDict, workdir: Path | epath.Path) -> Stage:
    """Make the stage that `config.stage` names; it may write its default data below `workdir`."""
    return importlib.import_module(STAGES[config.stage]).build(config, workdir)


def sketch(config: ml_collections.ConfigDict) -> Stage:
    """Make the stage without its files: enough to compile its step, not to run it."""
    module = importlib.import_module(STAGES[config.stage])
    if not hasattr(module, "sketch"):
        known = [name for name, path in STAGES.items() if hasattr(importlib.import_module(path), "sketch")]
        raise UserError(f"Stage {config.stage!r} cannot be planned: expected one of {', '.join(known)}.")
    return module.sketch(config)
