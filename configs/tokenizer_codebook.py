"""Train stage II of the image tokenizer: the codebook, and the decoder from codes to CLIP's embedding (spec A.10).

    python -m seed_jax.main --config=configs/tokenizer_codebook.py:tiny --workdir=/tmp/seed_codebook \
        --config.init_from.model=/tmp/seed_qformer

Variants
    tiny  a laptop CPU, about a minute: photographs that come with scikit-image and an untrained teacher; starts from a
          stage I workdir, or from random weights (then without retrieval).
    full  the original's architecture and hyper-parameters: 64 GPUs, batch 16384, up to 500 epochs of 5000 steps.

`full` needs `init_from.model` (a stage I workdir, or a tokenizer made by `seed-jax import tokenizer`), `teacher.vision`
(Hugging Face directory of CLIP ViT-H/14: laion/CLIP-ViT-H-14-laion2B-s32B-b79K) and shards of images with captions
(`seed-jax data build` without --model). All options: `seed_jax.train.config.CodebookStageConfig`.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import CodebookStageConfig, base

VARIANTS = ("full", "tiny")


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/tokenizer_codebook.py has no variant {variant!r}: expected {' or '.join(VARIANTS)}.")
    # 500 epochs; the original's task counts 5000 steps per epoch whatever the data.
    config = base(CodebookStageConfig, stage="codebook", steps=2_500_000, log_every=50)
    config.init_from.model = "runs/tokenizer_qformer"
    config.teacher.vision = "pretrained/CLIP-ViT-H-14-laion2B-s32B-b79K"
    config.data.batch_size = 16384  # 64 GPUs x 256
    config.optimizer.update(schedule="epochs", peak_lr=1e-4, epochs=500)  # from 1e-6 to 1e-4 to 1e-5
    config.checkpoint.every_steps = 5000
    if variant == "tiny":
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.update(steps=300, log_every=10)
    config.init_from.model = ""
    config.model.update(config="tiny", joint_width=32, dropout=0.0, remat=False)
    config.teacher.vision = "untrained"  # random weights: an embedding all the same
    config.data.update(demo=True, mixture=(), batch_size=24, text_length=16, workers=0)
    config.evaluate.update(every_steps=50, text_length=16)
    config.optimizer.update(peak_lr=5e-3, warmup_steps=20, epoch_steps=50, epochs=6)
    config.precision.update(frozen="float32", compute="float32")
    config.checkpoint.every_steps = 100
