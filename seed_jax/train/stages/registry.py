"""The stages by name. A stage's module is imported only when its stage is asked for."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import TrainConfig, parse
from seed_jax.train.stage import Stage

# name -> module and class
STAGES = {
    "pretrain": "seed_jax.train.stages.language:LanguageStage",
    "pretrain_full": "seed_jax.train.stages.language:LanguageStage",
    "pretrain_opt": "seed_jax.train.stages.seed_opt:SeedOptStage",
    "sft": "seed_jax.train.stages.language:LanguageStage",
    "qformer": "seed_jax.train.stages.qformer:QFormerStage",
    "codebook": "seed_jax.train.stages.codebook.stage:CodebookStage",
    "decoder": "seed_jax.train.stages.decoder.stage:DecoderStage",
    "world_teacher": "seed_jax.recipes.quickstart.teacher_stage:TeacherStage",
    "world_text": "seed_jax.recipes.quickstart.text_stage:TextTeacherStage",
    "image_text": "seed_jax.recipes.emoji.image_text_stage:ImageTextStage",
}


def stage_class(name: Any) -> type[Stage]:
    """Return the class of the stage that `config.stage` names."""
    if name not in STAGES:
        near = difflib.get_close_matches(str(name), STAGES, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"stage is {name!r}, expected one of {', '.join(STAGES)}{hint}")
    module, _, attribute = STAGES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def parse_config(values: Mapping[str, Any] | ml_collections.ConfigDict) -> TrainConfig:
    """Parse and validate a configuration with the dataclass of its stage."""
    return parse(stage_class(values.get("stage")).config_class, values)


def make_stage(config: TrainConfig) -> Stage:
    """Construct the stage that a configuration describes."""
    return stage_class(config.stage)(config)
