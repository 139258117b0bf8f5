"""Fine-tune the unCLIP decoder on pictures and what a tokenizer's 32 codes say of them (spec B).

    python -m seed_jax.main --config=configs/decoder.py:tiny --workdir=/tmp/seed_decoder

Variants
    tiny  a laptop CPU, about a minute: drawn scenes, an untrained tokenizer, UNet and autoencoder learn from nothing.
    full  Stable Diffusion 2.1 unCLIP, 768 pixels; the UNet trains, all else is frozen.

`full` needs `model.init` (`seed-jax import unclip`), `source.tokenizer` (`seed-jax import tokenizer`, or the workdir of
configs/tokenizer_codebook.py) and shards of pictures (`seed-jax data build` without --model). The workdir is then a
decoder for `seed-jax detokenize --unclip`, with the averaged weights.

The original never trained this part, so there are no settings of its own to keep to; those here are the usual ones for
fine-tuning Stable Diffusion.
"""

import ml_collections

from seed_jax.errors import UserError

VARIANTS = ("full", "tiny")


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/decoder.py has no variant {variant!r}: expected {' or '.join(VARIANTS)}.")
    config = _full()
    if variant == "tiny":
        _shrink(config)
    return config


def _full() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "decoder"
    config.seed = 42
    config.steps = 50_000
    config.log_every = 50
    config.samples = 8  # drawings after the last step, in drawings.png; 0 for none

    config.model = ml_collections.ConfigDict()
    config.model.init = "pretrained/unclip"  # a model directory or a workdir of this stage; "" starts from nothing
    config.model.sizes = "full"  # of UnclipConfig; ignored where `init` is given
    config.model.train = ("unet",)  # and "vae", the autoencoder, which a decoder from nothing needs first
    config.model.condition_dropout = 0.1  # share of pictures without embedding, so that guidance has a direction
    config.model.noise_level = 0  # most noise that is added to an embedding, 0 to 999; drawing uses 0
    config.model.ema_decay = 0.9999
    config.model.divergence_weight = 1e-6  # of the autoencoder's latents from a standard normal
    config.model.remat = True

    # One of both: the image tokenizer whose codes are drawn from ("untrained" for random weights), or the folder of
    # CLIP's Hugging Face files, as Stable Diffusion unCLIP itself was trained.
    config.source = ml_collections.ConfigDict({"tokenizer": "pretrained/seed-tokenizer-2", "vision": ""})

    config.data = ml_collections.ConfigDict()
    config.data.demo = False  # draw a few hundred scenes below the workdir
    config.data.parts = (ml_collections.ConfigDict({"path": "data/pairs", "weight": 1.0}),)
    config.data.batch_size = 512
    config.data.interpolation = "bilinear"  # of the tokenizer's pictures; those to be drawn are resized bicubically
    config.data.keep_ratio = True  # crop the centre
    config.data.flip = 0.5
    config.data.workers = 8  # processes of each host that decode; 0 uses threads
    config.data.prefetch = 4  # batches

    config.optimizer = ml_collections.ConfigDict(
        {
            "peak_lr": 1e-5,
            "min_lr_ratio": 1.0,
            "warmup_ratio": 0.02,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "accumulation": 1,
            "following": ("ema",),  # the averages have no moments
        }
    )
    config.precision = ml_collections.ConfigDict({"frozen": "bfloat16", "compute": "bfloat16"})
    config.mesh = ml_collections.ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1})
    config.checkpoint = ml_collections.ConfigDict({"every_steps": 5000, "keep_last": 3, "keep_every": 0})
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.steps = 200
    config.log_every = 10
    config.samples = 4
    config.model.init = ""
    config.model.sizes = "tiny"
    config.model.train = ("unet", "vae")
    config.model.ema_decay = 0.99
    config.model.remat = False
    config.source.tokenizer = "untrained"
    config.data.demo = True
    config.data.parts = ()
    config.data.batch_size = 16
    config.data.flip = 0.0
    config.data.workers = 0
    config.optimizer.peak_lr = 2e-3  # a small model stands large steps
    config.optimizer.min_lr_ratio = 0.1
    config.precision = ml_collections.ConfigDict({"frozen": "float32", "compute": "float32"})
    config.checkpoint.every_steps = 100
