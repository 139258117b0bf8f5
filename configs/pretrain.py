"""Pre-train SEED-LLaMA with LoRA on interleaved text and image codes (stage 1 of spec D.1 to D.3).

    python -m seed_jax.main --config=configs/pretrain.py:tiny --workdir=/tmp/seed_tiny

Variants
    tiny  a laptop CPU, a minute or two: photographs that come with scikit-image, an untrained tiny tokenizer, a LLaMA
          of half a million parameters; shows that every part works together, not what SEED can do.
    8b    SEED-LLaMA-8B (Vicuna-7B v1.1). The original used 64 A100-40G for 144 h including full fine-tuning.
    14b   SEED-LLaMA-14B (LLaMA-2-Chat-13B).

The real variants need `model.init` (made by `seed-jax import llama`), `data.vocabulary` (the folder of
AILab-CVC/seed-tokenizer-2 with tokenizer.model and added_tokens.json) and the shards of `data.parts`
(made by `seed-jax data build`).
"""

import ml_collections

from configs.data import pretrain as mixture
from seed_jax.errors import UserError

VARIANTS = ("8b", "14b", "tiny")


def get_config(variant: str = "8b") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/pretrain.py has no variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    config = _official()
    config.model.sizes = {"8b": "seed_8b", "14b": "seed_14b", "tiny": "tiny"}[variant]
    if variant == "tiny":
        _shrink(config)
    return config


def _official() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "pretrain"
    config.seed = 42
    config.steps = 30_000  # spec D.2
    config.log_every = 10

    config.model = ml_collections.ConfigDict()
    config.model.sizes = "seed_8b"  # a classmethod of LlamaConfig; ignored where `init` is given
    config.model.init = "pretrained/vicuna-7b-v1.1"  # a model directory; "" starts from random weights
    config.model.train = "lora"  # or "full": everything but the embedding table
    # "auto": as suits the accelerator, see seed_jax/accelerators.py; else names of models/nn/remat.py and attention.py.
    config.model.remat = "auto"
    config.model.attention = "auto"

    # Spec D.1: beside the adapters, embeddings, head and norms are trained whole.
    config.lora = ml_collections.ConfigDict({"rank": 16, "alpha": 32.0, "dropout": 0.05})
    config.precision = ml_collections.ConfigDict({"frozen": "bfloat16", "compute": "bfloat16"})

    config.data = ml_collections.ConfigDict()
    config.data.demo = False  # make a small data set from embedded photographs below the workdir
    config.data.vocabulary = "pretrained/seed-tokenizer-2"
    config.data.image_tokenizer = ""  # fingerprint of the image tokenizer whose codes are expected; "" takes any
    config.data.sequence_length = 2048
    # The original's batches hold about 23k padded tokens per GPU, x 4 accumulation, of which about 40 % are useful.
    config.data.batch_size = 256
    config.data.prefetch = 4
    # Weights are the original's (spec D.3) and mean the same: see seed_jax/data/batches/mixture_config.py.
    config.data.weight_by = "samples"  # or "tokens"
    config.data.parts = mixture.parts("data")

    # Spec D.2, row "pretrain (LoRA)".
    config.optimizer = ml_collections.ConfigDict(
        {
            "peak_lr": 1.5e-4,
            "min_lr_ratio": 0.05,
            "warmup_ratio": 0.03,
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-5,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "moments": "float32",  # or "bfloat16": a third less memory for what is trained
            # Microbatches; 0 takes as many as the accelerator's memory asks for (the original: 4). Sums are exact.
            "accumulation": 0,
        }
    )
    config.loss_chunk = 256  # positions of a row whose logits are held at once
    config.mesh = ml_collections.ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1})
    # every_minutes: also when so much time has passed since the last save; 0 for never.
    config.checkpoint = ml_collections.ConfigDict(
        {"every_steps": 1000, "every_minutes": 30.0, "keep_last": 3, "keep_every": 10_000}
    )
    # A loss or gradient that is not finite: "raise" ends the run, "skip" leaves the step out. spike: leave out
    # steps whose loss lies so many standard deviations above its running mean; 0 for none.
    config.guard = ml_collections.ConfigDict({"nonfinite": "raise", "spike": 0.0})
    # End the process when no step ends for so long, or another host gives no sign of life; 0 for never.
    config.watchdog = ml_collections.ConfigDict({"hung_minutes": 30.0, "lost_seconds": 30.0})
    config.profile = ml_collections.ConfigDict({"steps": ""})  # "10-12" writes a trace of these steps into the workdir
    config.layer_norms = False  # report norms of gradients and parameters layer by layer
    config.wandb = ml_collections.ConfigDict({"project": ""})
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.steps = 150
    config.log_every = 10
    config.model.init = ""
    config.model.remat = "none"
    config.model.attention = "xla"
    config.precision = ml_collections.ConfigDict({"frozen": "float32", "compute": "float32"})
    config.data.demo = True
    config.data.vocabulary = ""
    config.data.sequence_length = 256
    config.data.batch_size = 8
    config.data.parts = ()
    config.optimizer.peak_lr = 5e-3  # the smaller the model, the larger the step it stands
    config.optimizer.accumulation = 1
    config.checkpoint.every_steps = 50
