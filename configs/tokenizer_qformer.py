"""Train stage I of the image tokenizer: a causal Q-Former that matches pictures and captions (spec A.9).

    python -m seed_jax.main --config=configs/tokenizer_qformer.py:tiny --workdir=/tmp/seed_qformer

Variants
    tiny  a laptop CPU, about a minute: photographs that come with scikit-image, a random ViT; retrieval of held crops
          rises from chance to nearly all right.
    full  the original's sizes and hyper-parameters: 64 GPUs, batch 4096, 10 epochs of 5000 steps.

`full` needs `start.vit` (eva_vit_g.pth), `data.vocabulary` (vocab.txt of bert-base-uncased) and shards of pictures with
captions (`seed-jax data build` without --model); the original also starts from `start.bert` and `start.blip2`.
"""

import ml_collections

from seed_jax.errors import UserError

VARIANTS = ("full", "tiny")


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/tokenizer_qformer.py has no variant {variant!r}: expected {' or '.join(VARIANTS)}.")
    config = _official()
    if variant == "tiny":
        _shrink(config)
    return config


def _official() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "qformer"
    config.seed = 42
    config.steps = 50_000  # 10 epochs; the original's task counts 5000 steps an epoch whatever the data
    config.log_every = 50

    config.model = ml_collections.ConfigDict()
    config.model.sizes = "full"  # of SeedTokenizerConfig; ignored where `start.init` is given
    config.model.joint_width = 256
    config.model.dropout = 0.1  # of the Q-Former: BERT's
    config.model.remat = True
    # "own": a feature learns from its own row only, as in the original; "through_gather": from all rows it stands in.
    config.model.itc_gradient = "own"

    # Weights to start from; each may be "". `init` is a stage I workdir or a model directory, and is read first; then
    # vit (eva_vit_g.pth), bert (Hugging Face folder or file of bert-base-uncased), blip2 (blip2_pretrained.pth) and
    # quantizer (an official seed_quantizer.pt, to go on from), later ones over earlier ones.
    config.start = ml_collections.ConfigDict({"init": "", "vit": "", "bert": "", "blip2": "", "quantizer": ""})

    config.data = ml_collections.ConfigDict()
    config.data.demo = False  # make a small data set from embedded photographs below the workdir
    config.data.parts = ({"path": "data/pairs", "weight": 1.0},)
    config.data.held = ""  # shards of pictures with captions to evaluate on
    config.data.vocabulary = "pretrained/bert-base-uncased"  # vocab.txt or its folder; "" takes that of `start.init`
    config.data.batch_size = 4096  # 64 GPUs x 64
    config.data.text_length = 32
    config.data.augment = True
    config.data.crop_scale = (0.5, 1.0)  # spec A.1
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.flip = 0.5
    config.data.workers = 8  # processes of each host that decode and augment; 0 uses threads
    config.data.prefetch = 4  # batches

    # Retrieval of held pairs; `most` pictures at most, 0 for all.
    config.evaluate = ml_collections.ConfigDict({"every_steps": 1000, "text_length": 35, "most": 5000})

    config.optimizer = ml_collections.ConfigDict(
        {
            "schedule": "epochs",
            "peak_lr": 3e-5,
            "min_lr_ratio": 0.1,  # 3e-6
            "warmup_start_ratio": 0.01,  # 3e-7
            "warmup_steps": 2000,
            "epoch_steps": 5000,
            "epochs": 10,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.05,
            "clip_norm": 0.0,  # the original does not clip
            "accumulation": 1,  # negatives come from the whole batch
        }
    )
    config.precision = ml_collections.ConfigDict({"frozen": "bfloat16", "compute": "bfloat16"})
    config.mesh = ml_collections.ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1})
    config.checkpoint = ml_collections.ConfigDict({"every_steps": 5000, "keep_last": 3, "keep_every": 0})
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.steps = 150
    config.log_every = 10
    config.model.sizes = "tiny"
    config.model.joint_width = 32
    config.model.dropout = 0.0
    config.model.remat = False
    config.data.demo = True
    config.data.parts = ()
    config.data.vocabulary = ""
    config.data.batch_size = 24
    config.data.text_length = 16
    config.data.workers = 0
    config.evaluate.every_steps = 25
    config.evaluate.text_length = 16
    config.optimizer.peak_lr = 2e-3  # a small model stands large steps
    config.optimizer.warmup_steps = 20
    config.optimizer.epoch_steps = 25
    config.optimizer.epochs = 6
    config.precision = ml_collections.ConfigDict({"frozen": "float32", "compute": "float32"})
    config.checkpoint.every_steps = 50
