"""Pre-train SEED-LLaMA with LoRA on interleaved text and image codes (stage 1 of spec D.1 to D.3).

    python -m seed_jax.main --config=configs/pretrain.py:tiny --workdir=/tmp/seed_tiny

Variants
    tiny  a laptop CPU, a minute or two: photographs that come with scikit-image, an untrained tiny tokenizer, a LLaMA
          of half a million parameters; shows that every part works together, not what SEED can do.
    8b    SEED-LLaMA-8B (Vicuna-7B v1.1). The original used 64 A100-40G for 144 h including full fine-tuning.
    14b   SEED-LLaMA-14B (LLaMA-2-Chat-13B).

The real variants need `model.init` (made by `seed-jax import llama`), `data.vocabulary` (the directory of
AILab-CVC/seed-tokenizer-2 with tokenizer.model and added_tokens.json) and the shards of `data.mixture` (made by
`seed-jax data build`). All options: `seed_jax.train.config.LanguageConfig`. The original's LoRA dropout of 0.05 adds
a third to the planned step on TPUs: `--config.lora.dropout=0` does without.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import LanguageConfig, base, load_neighbor

VARIANTS = ("8b", "14b", "tiny")


def get_config(variant: str = "8b") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/pretrain.py has no variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    config = base(LanguageConfig, stage="pretrain", steps=30_000)  # spec D.2
    config.model.config = {"8b": "seed_8b", "14b": "seed_14b", "tiny": "tiny"}[variant]
    config.model.init = "pretrained/vicuna-7b-v1.1" if variant == "8b" else "pretrained/llama-2-13b-chat"
    config.data.vocabulary = "pretrained/seed-tokenizer-2"
    config.data.mixture = load_neighbor(__file__, "data/pretrain").components("data")
    # The original's batches hold about 23k padded tokens per GPU, x 4 accumulation, of which about 40 % are useful.
    config.data.batch_size = 256
    # Spec D.2, row "pretrain (LoRA)"; the original accumulates 4 microbatches.
    config.optimizer.update(
        peak_lr=1.5e-4, min_lr_ratio=0.05, warmup_ratio=0.03, b2=0.95, eps=1e-5, clip_norm=1.0, accumulation=0
    )
    config.checkpoint.update(every_steps=1000, keep_every=10_000)
    if variant == "tiny":
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.steps = 150
    config.model.update(init="", remat="none", attention="xla")
    config.precision.update(frozen="float32", compute="float32")
    config.data.update(demo=True, vocabulary="", mixture=(), sequence_length=256, batch_size=8)
    config.optimizer.update(peak_lr=5e-3, accumulation=1)  # a small model tolerates a high learning rate
    config.checkpoint.update(every_steps=50)
