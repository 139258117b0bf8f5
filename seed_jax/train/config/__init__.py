"""Training configurations: typed sections, their parsing and the files they come from.

A config file (`configs/*.py`) fills in a `ConfigDict` made by `base`; `parse` turns it into the frozen dataclass of its
stage. Nothing below `seed_jax.main` and the recipes reads a `ConfigDict`.
"""

from seed_jax.train.config.common import TrainConfig
from seed_jax.train.config.decoder import DecoderConfig
from seed_jax.train.config.language import LanguageConfig
from seed_jax.train.config.loading import load_config, load_neighbor
from seed_jax.train.config.schema import base, parse
from seed_jax.train.config.tokenizer import CodebookStageConfig, QFormerStageConfig

__all__ = [
    "CodebookStageConfig",
    "DecoderConfig",
    "LanguageConfig",
    "QFormerStageConfig",
    "TrainConfig",
    "base",
    "load_config",
    "load_neighbor",
    "parse",
]
