"""The whole recipe in miniature, without downloads: pictures become words that a small language model reads and writes.

    python -m seed_jax.main --config=configs/quickstart.py --workdir=/tmp/seed

A drawn world in which the truth is known takes the place of photographs. Encoder, teacher and decoder start from small
networks that come with the package, as SEED starts from EVA, BLIP-2, CLIP and Stable Diffusion; the variant `teacher`
trains those. Everything else is learnt: stage I, stage II, the decoder on codes, pre-training, instruction tuning. Then
it is measured on combinations that training never showed, and W/report.html shows all of it. Run the same command again
to go on where it stopped.

Variants
    world    the default
    teacher  train what the others start from, about two hours on two cores; --config.teacher=W/teacher uses it
    shortest every part once, for tests: two minutes, learns nothing to speak of
"""

import ml_collections

from configs import decoder, pretrain, tokenizer_codebook, tokenizer_qformer
from seed_jax.errors import UserError

VARIANTS = ("world", "teacher", "shortest")


def get_config(variant: str = "world") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/quickstart.py has no variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    config = ml_collections.ConfigDict()
    config.stage = "recipe"
    config.seed = 42  # of everything: what is drawn, and every stage
    # Networks to start from: the folder W/teacher of the variant `teacher`; "" for those of the package.
    config.teacher = ""
    # Codes of a picture (the language model writes 32 only; with fewer the recipe ends at the decoder), whether code i
    # knows nothing of later ones, and whether stage I comes before stage II.
    config.tokenizer = ml_collections.ConfigDict({"codes": 32, "causal": True, "contrastive": True})
    # Samples of the drawn world: captioned pictures for the tokenizer and the decoder, and `crowded` more with three
    # things each, which few others have; then what the language model reads.
    config.world = ml_collections.ConfigDict({"side": 48, "captions": 12_000, "crowded": 0})
    config.world.update({"questions": 6000, "edits": 6000, "differences": 1200, "stories": 600})
    config.evaluate = ml_collections.ConfigDict(
        {"samples": 200, "drawings": 100, "free": 100, "shown": 12, "batch": 50}
    )
    config.stages = _teacher_stages() if variant == "teacher" else _stages()
    if variant == "teacher":
        config.world.update({"captions": 32_000, "crowded": 10_000})
    if variant == "shortest":
        _shorten(config)
    return config


def _stages() -> ml_collections.ConfigDict:
    """Return the stages in their order; each is an ordinary config."""
    stages = ml_collections.ConfigDict()
    stages.qformer = _small(tokenizer_qformer.get_config("tiny"), steps=180, batch=64, rate=3e-4)
    stages.qformer.model.sizes = "small"
    stages.codebook = _small(tokenizer_codebook.get_config("tiny"), steps=800, batch=64, rate=2e-3)
    stages.codebook.model.sizes = "small"
    stages.codebook.codebook.update({"start": "kmeans", "ema_decay": 0.99, "restart_after": 20})
    for name in ("qformer", "codebook"):
        stages[name].data.demo, stages[name].data.augment = False, False
        stages[name].data.text_length = stages[name].evaluate.text_length = 32
        stages[name].optimizer.schedule = "warmup_cosine"
        stages[name].optimizer.warmup_ratio = 0.05
        stages[name].evaluate.most = 200
    stages.decoder = _decoder(steps=180, rate=5e-4)
    stages.pretrain = _language("pretrain", steps=650, rate=2e-3)
    stages.sft = _language("sft", steps=1250, rate=1.5e-3)
    return stages


def _teacher_stages() -> ml_collections.ConfigDict:
    stages = ml_collections.ConfigDict()
    reader = decoder.get_config("tiny")
    reader.stage = "world_teacher"
    stages.reader = _small(reader, steps=3600, batch=64, rate=4e-3)
    stages.reader.model.sizes = "small"
    stages.reader.optimizer.update({"following": (), "b2": 0.98, "warmup_ratio": 0.05})
    stages.autoencoder = _decoder(steps=3000, rate=2e-3)
    stages.autoencoder.data.batch_size = 16
    stages.autoencoder.model.train = ("vae",)
    # Loud latents: noise of half their size must not be seen in the picture, since the UNet errs by as much.
    stages.autoencoder.model.divergence_weight = 1e-3
    stages.painter = _decoder(steps=26_000, rate=1.5e-3)
    stages.painter.data.batch_size = 16
    stages.painter.model.ema_decay = 0.999
    return stages


def _decoder(steps: int, rate: float) -> ml_collections.ConfigDict:
    config = _small(decoder.get_config("tiny"), steps=steps, batch=32, rate=rate)
    config.samples = 8
    config.model.sizes = "small"
    config.model.train = ("unet",)
    config.model.ema_decay = 0.99
    config.source.tokenizer = ""
    config.data.demo = False
    return config


def _language(stage: str, steps: int, rate: float) -> ml_collections.ConfigDict:
    config = _small(pretrain.get_config("tiny"), steps=steps, batch=8, rate=rate)
    config.stage = stage
    config.model.train = "all"  # from random weights: LoRA has nothing to adapt
    config.data.demo = False
    config.data.sequence_length = 256
    config.optimizer.warmup_ratio = 0.05
    return config


def _small(config: ml_collections.ConfigDict, *, steps: int, batch: int, rate: float) -> ml_collections.ConfigDict:
    config.steps = steps
    config.log_every = max(1, min(50, steps // 4))
    config.data.batch_size = batch
    config.optimizer.peak_lr = rate
    config.optimizer.min_lr_ratio = 0.02
    config.checkpoint.update({"every_steps": max(1, steps // 2), "keep_last": 1})
    if "evaluate" in config:
        config.evaluate.every_steps = steps
    return config


def _shorten(config: ml_collections.ConfigDict) -> None:
    config.world.update({"captions": 128, "questions": 64, "edits": 32, "differences": 32, "stories": 16})
    config.evaluate.update({"samples": 8, "drawings": 8, "free": 8, "shown": 4, "batch": 8})
    for stage in config.stages.values():
        stage.steps, stage.log_every, stage.checkpoint.every_steps = 4, 2, 2
        stage.data.batch_size = 8
        if "evaluate" in stage:
            stage.evaluate.every_steps = 4
            stage.evaluate.most = 16
    config.stages.codebook.codebook.kmeans_vectors = 1
    config.stages.decoder.samples = 2
