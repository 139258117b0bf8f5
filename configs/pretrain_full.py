"""Fine-tune all of SEED-LLaMA but its embedding table: the second half of pre-training, missing upstream (spec D.6).

    python -m seed_jax.main --config=configs/pretrain.py:tiny --workdir=/tmp/lora
    python -m seed_jax.main --config=configs/pretrain_full.py:tiny --workdir=/tmp/full --config.model.init=/tmp/lora

`model.init` is the workdir of `configs/pretrain.py`, whose adapters are merged, or any model directory. Variants: tiny,
8b, 14b.

The original publishes neither learning rate nor steps of this stage. Ours: a fifth of the LoRA stage's learning rate,
because every weight changes, and a third of its steps.
"""

import ml_collections

from seed_jax.train.config import load_neighbor


def get_config(variant: str = "8b") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    config = load_neighbor(__file__, "pretrain").get_config(variant)
    config.stage = "pretrain_full"
    config.model.train = "full"
    config.steps //= 3
    config.optimizer.peak_lr /= 5
    if variant != "tiny":
        config.model.init = f"runs/pretrain_{variant}"
    return config
