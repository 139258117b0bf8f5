"""The stages by name. A stage's module is imported only when it is asked for."""

import importlib
from pathlib import Path

import ml_collections

from seed_jax.train.stages import Stage

# name -> module with `build(config, workdir) -> Stage`
STAGES = {
    "pretrain": "seed_jax.train.language",
    "pretrain_full": "seed_jax.train.language",
    "sft": "seed_jax.train.language",
    "qformer": "seed_jax.train.tokenizer_qformer",
    "codebook": "seed_jax.train.tokenizer_codebook",
}


def build(config: ml_collections.ConfigDict, workdir: Path) -> Stage:
    """Make the stage that `config.stage` names; it may write its default data below `workdir`."""
    return importlib.import_module(STAGES[config.stage]).build(config, workdir)
