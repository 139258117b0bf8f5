"""Train stage I of the image tokenizer: a causal Q-Former that matches images and captions (spec A.9).

    python -m seed_jax.main --config=configs/tokenizer_qformer.py:tiny --workdir=/tmp/seed_qformer

Variants
    tiny  a laptop CPU, about a minute: photographs that come with scikit-image, a random ViT; retrieval of held-out
          crops rises from chance to nearly all right.
    full  the original's architecture and hyper-parameters: 64 GPUs, batch 4096, 10 epochs of 5000 steps.

`full` needs `init_from.vit` (eva_vit_g.pth), `data.vocabulary` (vocab.txt of bert-base-uncased) and shards of images
with captions (`seed-jax data build` without --model); the original also starts from `init_from.bert` and
`init_from.blip2`. All options: `seed_jax.train.config.QFormerStageConfig`.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import QFormerStageConfig, base

VARIANTS = ("full", "tiny")


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/tokenizer_qformer.py has no variant {variant!r}: expected {' or '.join(VARIANTS)}.")
    # 10 epochs; the original's task counts 5000 steps per epoch whatever the data.
    config = base(QFormerStageConfig, stage="qformer", steps=50_000, log_every=50)
    config.data.vocabulary = "pretrained/bert-base-uncased"
    config.data.batch_size = 4096  # 64 GPUs x 64
    config.optimizer.update(schedule="epochs", peak_lr=3e-5, epochs=10)  # from 3e-7 to 3e-5 to 3e-6
    config.checkpoint.every_steps = 5000
    if variant == "tiny":
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.update(steps=150, log_every=10)
    config.model.update(config="tiny", joint_width=32, dropout=0.0, remat=False)
    config.data.update(demo=True, mixture=(), vocabulary="", batch_size=24, text_length=16, workers=0)
    config.evaluate.update(every_steps=25, text_length=16)
    config.optimizer.update(peak_lr=2e-3, warmup_steps=20, epoch_steps=25, epochs=6)
    config.precision.update(frozen="float32", compute="float32")
    config.checkpoint.every_steps = 50
