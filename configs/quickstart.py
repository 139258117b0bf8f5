"""The whole recipe in miniature, without downloads: every stage of SEED on two CPU cores, and measurements.

    python -m seed_jax.main --config=configs/quickstart.py --workdir=/tmp/seed

A synthetic world with known content takes the place of photographs. Encoder, teacher and decoder start from small
networks that come with the package, as SEED starts from EVA, BLIP-2, CLIP and Stable Diffusion; the variant `teacher`
trains those. Everything else is trained here: stage I, stage II, the decoder on codes, pre-training, instruction
tuning. The results on combinations of attributes that were held out of training are in results.json and report.html of
the workdir.
Run the same command again to resume.

Variants
    world     the default, 10 to 15 minutes
    seed1     the same world with the first paper's system: codes predict text states through a Reverse Q-Former, Stable
              Diffusion draws, a small OPT captions and draws (it neither answers nor edits)
    seed1_shortest  every step of it once, for tests
    teacher   train the networks that the others start from, about two hours on two cores; use them with
              --config.teacher=W/teacher
    teacher_further  train an earlier teacher further, much as that of the package was, --config.teacher=W/teacher:
              about an hour and a half; latents stay what they are
    shortest  every step once, for tests: two minutes; learns next to nothing

All options: `seed_jax.recipes.quickstart.config.QuickstartConfig`; those of a stage are under `stages.NAME`.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.recipes.quickstart.config import QuickstartConfig, TeacherStageConfig, TextTeacherConfig
from seed_jax.train.config import base, load_neighbor

VARIANTS = ("world", "teacher", "teacher_further", "shortest", "seed1", "seed1_shortest")


def get_config(variant: str = "world") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/quickstart.py has no variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    config = base(QuickstartConfig)
    config.stages = _teacher_stages() if variant.startswith("teacher") else _stages()
    if variant.startswith("seed1"):
        config.stages = _seed1_stages()
    if variant == "teacher_further":
        _continue(config.stages)
    if variant.startswith("teacher"):
        config.world.update(captions=32_000, crowded=10_000)
    else:
        config.world.crowded = 1500  # of the sampled scenes only one in fourteen shows three objects
    if variant.endswith("shortest"):
        _shorten(config)
    return config


def _stages() -> ml_collections.ConfigDict:
    """Return the stages in order; each is an ordinary config."""
    stages = ml_collections.ConfigDict()
    stages.qformer = _scaled(load_neighbor(__file__, "tokenizer_qformer"), steps=360, batch_size=64, peak_lr=2e-3)
    # The text side starts from random weights, so it needs a higher rate than the teacher's image side, whose queries
    # would forget attributes. In batches of 64 a feature also has to learn as a candidate.
    stages.qformer.model.itc_gradient = "through_gather"
    image_side = ("query_tokens", "embed_norm", "self_attention", "cross_attention", "query_ffn", "ln_vision")
    stages.qformer.optimizer.update(slow=image_side, slow_ratio=0.15, b2=0.98)
    stages.codebook = _scaled(load_neighbor(__file__, "tokenizer_codebook"), steps=800, batch_size=64, peak_lr=2e-3)
    stages.codebook.codebook.update(init="kmeans", ema_decay=0.99, restart_after=20)
    for stage in (stages.qformer, stages.codebook):
        stage.model.config = "small"
        stage.data.update(augment=False, text_length=32)
        stage.evaluate.update(text_length=32, max_samples=200)
        stage.optimizer.update(schedule="warmup_cosine", warmup_ratio=0.05)
    stages.decoder = _decoder(steps=180, batch_size=32, peak_lr=5e-4)
    stages.pretrain = _language("pretrain", steps=650, peak_lr=2e-3)
    stages.sft = _language("sft", steps=1250, peak_lr=1.5e-3)
    return stages


def _seed1_stages() -> ml_collections.ConfigDict:
    """Return SEED-1's stages: tokenizer as SEED-2's but for what the codes predict, no instruction tuning."""
    stages = _stages()
    del stages.pretrain, stages.sft
    stages.text = base(TextTeacherConfig)
    stages.text.precision.update(frozen="float32", compute="float32")
    stages.text.data.update(flip=0.0, workers=0)
    stages.text.optimizer.update(b2=0.98, weight_decay=0.01, clip_norm=1.0, warmup_ratio=0.05)
    _scale(stages.text, steps=600, batch_size=64, peak_lr=2e-3)
    stages.codebook.model.head = "text_features"
    stages.codebook.teacher.vision = ""
    # The UNet's attention to text states starts from random weights: more steps than SEED-2's decoder needs.
    stages.decoder = _decoder(steps=1200, batch_size=32, peak_lr=1e-3)
    stages.decoder.model.decoder = "stable_diffusion"
    stages.pretrain_opt = _scaled(load_neighbor(__file__, "pretrain_opt"), steps=1200, batch_size=8, peak_lr=2e-3)
    stages.pretrain_opt.data.sequence_length = 256
    stages.pretrain_opt.optimizer.warmup_ratio = 0.05
    return stages


def _teacher_stages() -> ml_collections.ConfigDict:
    stages = ml_collections.ConfigDict()
    stages.reader = base(TeacherStageConfig)
    stages.reader.precision.update(frozen="float32", compute="float32")
    stages.reader.data.update(flip=0.0, workers=0)
    stages.reader.optimizer.update(b2=0.98, weight_decay=0.01, clip_norm=1.0, warmup_ratio=0.05)
    _scale(stages.reader, steps=3600, batch_size=64, peak_lr=4e-3)
    stages.autoencoder = _decoder(steps=3000, batch_size=16, peak_lr=2e-3)
    # The divergence makes latents that tolerate noise of half their standard deviation: the UNet's errors are as large.
    # Pixels alone leave small shapes blurred: the reader, which tells them apart, must see the same in both images.
    stages.autoencoder.model.update(train=("vae",), divergence_weight=1e-3, perceptual_weight=0.02, latent_noise=0.3)
    stages.painter = _decoder(steps=26_000, batch_size=16, peak_lr=1.5e-3)
    stages.painter.model.ema_decay = 0.999
    return stages


def _continue(stages: ml_collections.ConfigDict) -> None:
    """Change the teacher's stages to those that train an earlier one further."""
    stages.reader.optimizer.peak_lr = 2e-3
    stages.autoencoder.steps = 2400
    stages.autoencoder.optimizer.peak_lr = 1e-3
    stages.autoencoder.model.train = ("vae_decoder",)
    stages.painter.steps = 18_000
    stages.painter.optimizer.peak_lr = 1e-3


def _decoder(steps: int, batch_size: int, peak_lr: float) -> ml_collections.ConfigDict:
    config = _scaled(load_neighbor(__file__, "decoder"), steps=steps, batch_size=batch_size, peak_lr=peak_lr)
    config.samples = 8
    config.model.update(config="small", train=("unet",), ema_decay=0.99)
    config.source.tokenizer = ""  # the recipe names the tokenizer or the vision tower
    return config


def _language(stage: str, steps: int, peak_lr: float) -> ml_collections.ConfigDict:
    config = _scaled(load_neighbor(__file__, "pretrain"), steps=steps, batch_size=8, peak_lr=peak_lr)
    config.stage = stage
    config.model.train = "all"  # LoRA would adapt random weights
    config.data.sequence_length = 256
    config.optimizer.update(warmup_ratio=0.05, eps=1e-8)  # the original's 1e-5 holds back a model from random weights
    return config


def _scaled(module, *, steps: int, batch_size: int, peak_lr: float) -> ml_collections.ConfigDict:
    """Return the tiny variant of a config file, scaled."""
    config = module.get_config("tiny")
    config.data.demo = False
    return _scale(config, steps=steps, batch_size=batch_size, peak_lr=peak_lr)


def _scale(
    config: ml_collections.ConfigDict, *, steps: int, batch_size: int, peak_lr: float
) -> ml_collections.ConfigDict:
    config.update(steps=steps, log_every=max(1, min(50, steps // 4)))
    config.data.batch_size = batch_size
    config.optimizer.update(peak_lr=peak_lr, min_lr_ratio=0.02)
    config.checkpoint.update(every_steps=max(1, steps // 2), keep_last=1)
    config.evaluate.every_steps = steps
    return config


def _shorten(config: ml_collections.ConfigDict) -> None:
    config.world.update(captions=128, crowded=16, questions=64, edits=32, differences=32, stories=16)
    config.evaluate.update(samples=8, drawings=8, free=8, shown=4, batch=8)
    for stage in config.stages.values():
        stage.update(steps=4, log_every=2)
        stage.checkpoint.every_steps = 2
        stage.data.batch_size = 8
        stage.evaluate.update(every_steps=4, max_samples=16)
    config.stages.codebook.codebook.kmeans_vectors = 1
    config.stages.decoder.samples = 2
