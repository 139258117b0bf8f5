"""Train stage II of the image tokenizer: the codebook, and the decoder from codes to CLIP's outputs (spec A.10, G).

    python -m seed_jax.main --config=configs/tokenizer_codebook.py:tiny --workdir=/tmp/seed_codebook \
        --config.init_from.model=/tmp/seed_qformer

Variants
    tiny  a laptop CPU, about a minute: photographs that come with scikit-image and an untrained teacher; starts from a
          stage I workdir, or from random weights (then without retrieval).
    full  the original's architecture and hyper-parameters: 64 GPUs, batch 16384, up to 500 epochs of 5000 steps.
    seed1, seed1_tiny  the same of SEED-1, whose 32 codes predict the 77 text states of the caption for Stable Diffusion
          1.4; the weights of the loss terms and the schedule are SEED-2's, since the paper gives none.

`full` needs `init_from.model` (a stage I workdir, or a tokenizer made by `seed-jax import tokenizer`), `teacher.vision`
(Hugging Face directory of CLIP ViT-H/14: laion/CLIP-ViT-H-14-laion2B-s32B-b79K) and shards of images with captions
(`seed-jax data build` without --model); `seed1` needs `teacher.text` and `teacher.text_vocabulary` (the folders
text_encoder and tokenizer of CompVis/stable-diffusion-v1-4) in place of `teacher.vision`. All options:
`seed_jax.train.config.CodebookStageConfig`.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import CodebookStageConfig, base

VARIANTS = ("full", "tiny", "seed1", "seed1_tiny")


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(
            f"configs/tokenizer_codebook.py has no variant {variant!r}: expected one of {', '.join(VARIANTS)}."
        )
    # 500 epochs; the original's task counts 5000 steps per epoch whatever the data.
    config = base(CodebookStageConfig, stage="codebook", steps=2_500_000, log_every=50)
    config.init_from.model = "runs/tokenizer_qformer"
    config.teacher.vision = "pretrained/CLIP-ViT-H-14-laion2B-s32B-b79K"
    config.data.batch_size = 16384  # 64 GPUs x 256
    config.optimizer.update(schedule="epochs", peak_lr=1e-4, epochs=500)  # from 1e-6 to 1e-4 to 1e-5
    config.checkpoint.every_steps = 5000
    seed1 = variant.startswith("seed1")
    if seed1:
        config.model.head = "text_features"
        sd = "pretrained/stable-diffusion-v1-4"
        config.teacher.update(vision="", text=f"{sd}/text_encoder", text_vocabulary=f"{sd}/tokenizer")
    if variant.endswith("tiny"):
        _shrink(config)
        teacher = {"text": "untrained", "text_vocabulary": ""} if seed1 else {"vision": "untrained"}
        config.teacher.update(teacher)  # random weights: outputs to predict all the same
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.update(steps=300, log_every=10)
    config.init_from.model = ""
    config.model.update(config="tiny", joint_width=32, dropout=0.0, remat=False)
    config.data.update(demo=True, mixture=(), batch_size=24, text_length=16, workers=0)
    config.evaluate.update(every_steps=50, text_length=16)
    config.optimizer.update(peak_lr=5e-3, warmup_steps=20, epoch_steps=50, epochs=6)
    config.precision.update(frozen="float32", compute="float32")
    config.checkpoint.every_steps = 100
