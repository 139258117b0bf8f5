"""The whole recipe from scratch on the emoji of three studios, measured on those of a fourth.

    python -m seed_jax.main --config=configs/emoji.py --config.packages.directory=E --workdir=W

E holds the unpacked npm packages `emoji-datasource-STUDIO`: benchmarks/emoji.md says how to get them. Everything starts
from random weights: vision transformer, Q-Former, codebook, autoencoder, UNet and language model. The results on the
images of the studio `packages.test`, which no training sees, are in results.json and report.html of the workdir.
Run the same command again to resume.

Variants
    emoji    the default: 146 processor minutes on a CPU (docs/emoji.md)
    reduced  a twelfth of the images in stage I, few steps of everything else, fewer samples measured: to try it out
    tiny     every step once, for tests: learns nothing

All options: `seed_jax.recipes.emoji.config.EmojiConfig`; those of a stage are under `stages.NAME`.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.recipes.emoji.config import EmojiConfig, ImageTextConfig
from seed_jax.train.config import base, load_neighbor

VARIANTS = ("emoji", "reduced", "tiny")
# Stage -> steps, batch size, peak learning rate.
_FULL = {
    "image_text": (3000, 128, 1.5e-3),
    "codebook": (1600, 64, 2e-3),
    "autoencoder": (2400, 16, 2e-3),
    "decoder": (7000, 16, 1.5e-3),
    "sft": (4000, 8, 2e-3),
}
_REDUCED = {
    "image_text": (500, 64, 1e-3),
    "codebook": (200, 64, 2e-3),
    "autoencoder": (200, 16, 2e-3),
    "decoder": (500, 16, 1.5e-3),
    "sft": (500, 8, 2e-3),
}


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/emoji.py has no variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    config = base(EmojiConfig)
    config.stages = _stages(_REDUCED if variant == "reduced" else _FULL)
    if variant == "reduced":
        config.packages.copies = 1
        config.evaluate.update(names=150, drawings=50)
    if variant == "tiny":
        _shrink(config)
    return config


def _stages(sizes: dict[str, tuple[int, int, float]]) -> ml_collections.ConfigDict:
    """Return the stages in order; each is an ordinary config."""
    stages = ml_collections.ConfigDict()
    stages.image_text = base(ImageTextConfig)
    stages.image_text.model.update(itc_gradient="through_gather", dropout=0.0, remat=False)
    stages.codebook = load_neighbor(__file__, "tokenizer_codebook").get_config("tiny")
    stages.codebook.codebook.update(init="kmeans", ema_decay=0.99, restart_after=20)
    stages.codebook.teacher.vision = ""  # the recipe names the vision tower that it trained
    for stage in (stages.image_text, stages.codebook):
        stage.model.config = "small"
        stage.data.update(crop_scale=(0.6, 1.0), text_length=16)
        stage.evaluate.update(text_length=16, max_samples=500)
        stage.optimizer.update(schedule="warmup_cosine", warmup_ratio=0.05, weight_decay=0.05)
    stages.autoencoder = _decoder("vae")
    stages.decoder = _decoder("unet")
    stages.sft = load_neighbor(__file__, "sft").get_config("tiny")
    stages.sft.model.train = "all"  # LoRA would adapt random weights
    stages.sft.data.sequence_length = 256
    stages.sft.optimizer.warmup_ratio = 0.05
    for name, (steps, batch_size, peak_lr) in sizes.items():
        _scale(stages[name], steps=steps, batch_size=batch_size, peak_lr=peak_lr)
    return stages


def _decoder(part: str) -> ml_collections.ConfigDict:
    """Return the stage that trains one part of the decoder."""
    config = load_neighbor(__file__, "decoder").get_config("tiny")
    config.source.tokenizer = ""  # the recipe names tokenizer or vision tower
    config.samples = 8
    config.model.update(config="small", train=(part,), ema_decay=0.99 if part == "vae" else 0.999)
    if part == "vae":
        # Latents that tolerate noise: the UNet's errors are large.
        config.model.divergence_weight = 1e-3
    return config


def _scale(config: ml_collections.ConfigDict, *, steps: int, batch_size: int, peak_lr: float) -> None:
    config.update(steps=steps, log_every=max(1, min(50, steps // 4)))
    config.data.update(demo=False, batch_size=batch_size)
    if "flip" in config.data:
        config.data.update(flip=0.0, workers=0)  # an arrow to the left is not one to the right
    config.precision.update(frozen="float32", compute="float32")
    config.optimizer.update(peak_lr=peak_lr, min_lr_ratio=0.02)
    config.checkpoint.update(every_steps=max(1, steps // 4), keep_last=1)
    config.evaluate.every_steps = max(1, steps // 2)


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.packages.update(copies=1, pieces=400, words=200)
    config.pixel_codes.update(steps=2, batch_size=8, vectors=1)
    config.evaluate.update(drawings=4, batch=4)
    for stage in config.stages.values():
        stage.update(steps=2, log_every=1)
        stage.checkpoint.every_steps = 2
        stage.data.batch_size = 8
        stage.evaluate.update(every_steps=2, max_samples=8)
        if "config" in stage.model:
            stage.model.config = "tiny"
    config.stages.codebook.codebook.kmeans_vectors = 1
    config.stages.decoder.samples = config.stages.autoencoder.samples = 0
