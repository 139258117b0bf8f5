"""Train SEED-OPT, the language model of the first SEED paper (arXiv 2307.08041, spec G), which was never released.

    python -m seed_jax.main --config=configs/pretrain_opt.py:tiny --workdir=/tmp/seed_opt

Variants
    2.7b  SEED-OPT-2.7B on the paper's 5 million pairs (CC3M, Unsplash, COCO): OPT-2.7B frozen, LoRA, one linear layer
          from code vectors to token embeddings, embeddings of 8194 image tokens.
    tiny  a laptop CPU, a minute or two: photographs that come with scikit-image, an untrained tiny tokenizer, an OPT of
          half a million parameters that trains as a whole.

`2.7b` needs `model.init` (`seed-jax import opt --from DIR` of facebook/opt-2.7b), `data.vocabulary` (the same DIR;
image tokens are added to it), `model.code_vectors` (SEED-1's image tokenizer) and shards of captioned images that this
tokenizer made (`seed-jax data build --model`). The workdir answers with prompt style `seed1`: images are captioned,
texts are drawn. All options: `seed_jax.train.config.LanguageConfig`.

From the paper are the model, the frozen parts, the prompts, the loss on targets only and the data. It gives no
hyper-parameters: rank, learning rate, batch size and the number of epochs are ours, taken from SEED-LLaMA's
pre-training (spec D.2); so is the width of the code vectors (the codebook's 32), which the paper does not state.
"""

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import LanguageConfig, base

VARIANTS = ("2.7b", "tiny")
PAIRS, EPOCHS = 5_000_000, 4  # the paper's pairs; the epochs are ours, half of them in each direction
_TOKENS = 55  # of a pair in one direction, on average: 34 of an image, some 20 of prompt and caption


def get_config(variant: str = "2.7b") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/pretrain_opt.py has no variant {variant!r}: expected {' or '.join(VARIANTS)}.")
    config = base(LanguageConfig, stage="pretrain_opt")
    config.model.update(config="seed_opt_2b7", train="adapters", init="pretrained/opt-2.7b")
    config.model.code_vectors = "pretrained/seed-tokenizer-1"
    config.data.vocabulary = "pretrained/opt-2.7b-hf"
    config.data.sequence_length = 2048
    config.data.batch_size = 64
    config.steps = EPOCHS * PAIRS * _TOKENS // (config.data.batch_size * config.data.sequence_length)
    config.data.mixture = tuple(
        {"path": f"data/{name}", "task": task, "weight": float(pairs), "params": {"max_length": 160}}
        for name, pairs in (("cc3m", 3.0), ("unsplash", 1.5), ("coco", 0.5))  # million pairs, about
        for task in ("seed1.caption", "seed1.image")
    )
    config.optimizer.update(
        peak_lr=1.5e-4, min_lr_ratio=0.05, warmup_ratio=0.03, b2=0.95, eps=1e-5, clip_norm=1.0, accumulation=0
    )
    config.checkpoint.update(every_steps=1000, keep_every=10_000)
    if variant == "tiny":
        _shrink(config)
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.steps = 150
    # LoRA would adapt random weights.
    config.model.update(config="opt_tiny", train="all", init="", code_vectors="", remat="none", attention="xla")
    config.precision.update(frozen="float32", compute="float32")
    config.data.update(demo=True, vocabulary="", mixture=(), sequence_length=256, batch_size=8)
    config.optimizer.update(peak_lr=3e-3, accumulation=1)  # a small model tolerates a high learning rate
    config.checkpoint.update(every_steps=50)
