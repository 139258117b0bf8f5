"""Fine-tune a diffusion decoder on images and what a tokenizer's 32 codes say of them (spec B, G).

    python -m seed_jax.main --config=configs/decoder.py:tiny --workdir=/tmp/seed_decoder

Variants
    tiny  a laptop CPU, about a minute: drawn scenes, an untrained tokenizer; UNet and autoencoder train from scratch.
    full  Stable Diffusion 2.1 unCLIP, 768 pixels; the UNet trains, everything else is frozen.
    seed1, seed1_tiny  the same of SEED-1: Stable Diffusion 1.4, 512 pixels, conditioned on 77 text states.

`full` needs `model.init` (`seed-jax import unclip`), `source.tokenizer` (`seed-jax import tokenizer`, or the workdir of
configs/tokenizer_codebook.py) and shards of images (`seed-jax data build` without --model). The workdir is then a
decoder for `seed-jax detokenize --decoder`, with the averaged weights. `seed1` takes a decoder of `seed-jax import sd`
and SEED-1's tokenizer. All options: `seed_jax.train.config.DecoderConfig`.

The original never trained this part, so it gives no hyper-parameters; these are usual for fine-tuning Stable Diffusion.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import DecoderConfig, base

VARIANTS = ("full", "tiny", "seed1", "seed1_tiny")


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/decoder.py has no variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    config = base(DecoderConfig, stage="decoder", steps=50_000, log_every=50)
    config.model.init = "pretrained/unclip"
    config.source.tokenizer = "pretrained/seed-tokenizer-2"
    config.optimizer.update(peak_lr=1e-5, min_lr_ratio=1.0, warmup_ratio=0.02, weight_decay=0.01, clip_norm=1.0)
    config.checkpoint.every_steps = 5000
    if variant.startswith("seed1"):
        config.model.update(decoder="stable_diffusion", init="pretrained/stable-diffusion-v1-4")
        config.source.tokenizer = "pretrained/seed-tokenizer-1"
    if variant.endswith("tiny"):
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.update(steps=200, log_every=10, samples=4)
    config.model.update(init="", config="tiny", train=("unet", "vae"), ema_decay=0.99, remat=False)
    config.source.tokenizer = "untrained"
    config.data.update(demo=True, mixture=(), batch_size=16, flip=0.0, workers=0)
    config.optimizer.update(peak_lr=2e-3, min_lr_ratio=0.1)  # a small model tolerates a high learning rate
    config.precision.update(frozen="float32", compute="float32")
    config.checkpoint.every_steps = 100
