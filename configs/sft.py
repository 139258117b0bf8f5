"""Instruction-tune SEED-LLaMA with LoRA on a pre-trained model (spec D.2, D.4).

    python -m seed_jax.main --config=configs/pretrain.py:tiny --workdir=/tmp/lora
    python -m seed_jax.main --config=configs/sft.py:tiny --workdir=/tmp/sft --config.model.init=/tmp/lora

`model.init` is the workdir of `configs/pretrain.py` or `configs/pretrain_full.py`, whose adapters are merged, or any
model directory. Variants: tiny, 8b, 14b. The original used 32 A100-80G for 16 h for the 8B.
"""

import ml_collections

from seed_jax.train.config import load_neighbor


def get_config(variant: str = "8b") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    config = load_neighbor(__file__, "pretrain").get_config(variant)
    config.stage = "sft"
    if variant == "tiny":
        return config
    config.model.init = f"runs/pretrain_full_{variant}"
    components = load_neighbor(__file__, "data/sft").components
    config.data.mixture = components("data/sft", style="llama2" if variant == "14b" else "vicuna")
    config.steps = 50_000
    config.optimizer.update(peak_lr=1e-4, min_lr_ratio=0.1, warmup_ratio=0.07)
    config.checkpoint.every_steps = 10_000
    return config
