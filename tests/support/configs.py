"""Load packaged configs for tests."""

from typing import Any

from seed_jax.train.config import TrainConfig, load_config
from seed_jax.train.stages.registry import parse_config


def config_for(name: str, **changes: Any) -> TrainConfig:
    """Load and parse a config with dotted options changed: `config_for("pretrain:tiny", **{"data.demo": False})`."""
    config = load_config(name)
    config.update_from_flattened_dict(changes)
    return parse_config(config)
