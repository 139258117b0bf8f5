"""Train stage II of the image tokenizer: the codebook, and the way from codes to CLIP's image embedding (spec A.10).

    python -m seed_jax.main --config=configs/tokenizer_codebook.py:tiny --workdir=/tmp/seed_codebook \
        --config.start.init=/tmp/seed_qformer

Variants
    tiny  a laptop CPU, about a minute: photographs that come with scikit-image and an untrained teacher; starts from a
          stage I workdir, or from nothing (then without retrieval).
    full  the original's sizes and hyper-parameters: 64 GPUs, batch 16384, up to 500 epochs of 5000 steps.

`full` needs `start.init` (a stage I workdir, or a tokenizer made by `seed-jax import tokenizer` to go on from),
`teacher.vision` (Hugging Face folder of CLIP ViT-H/14: laion/CLIP-ViT-H-14-laion2B-s32B-b79K) and shards of pictures
with captions (`seed-jax data build` without --model).
"""

import ml_collections

from seed_jax.errors import UserError

VARIANTS = ("full", "tiny")


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/tokenizer_codebook.py has no variant {variant!r}: expected {' or '.join(VARIANTS)}.")
    config = _official()
    if variant == "tiny":
        _shrink(config)
    return config


def _official() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.stage = "codebook"
    config.seed = 42
    config.steps = 2_500_000  # 500 epochs; the original's task counts 5000 steps an epoch whatever the data
    config.log_every = 50

    config.model = ml_collections.ConfigDict()
    config.model.sizes = "full"  # of SeedTokenizerConfig, where `start.init` does not give them
    config.model.head = (
        "mlp"  # as the released weights; "reverse_qformer" is the default of the original's training code
    )
    config.model.text_branch = False  # also estimate Stable Diffusion 1's text states, as the released weights do
    config.model.joint_width = 256  # of stage I's projections, where official files bring them
    config.model.dropout = 0.1  # of the Q-Formers: BERT's
    config.model.remat = True

    # Weights to start from; each may be "". `init` is a workdir of stage I or II or a model directory; the others are
    # official files: vit (eva_vit_g.pth), blip2 (blip2_pretrained.pth), quantizer (seed_quantizer.pt).
    config.start = ml_collections.ConfigDict({"init": "", "vit": "", "bert": "", "blip2": "", "quantizer": ""})

    # Spec A.10. `reconstruction_kind` may be "mse", as in the paper; `frozen_dropout` True keeps the dropout of the
    # frozen Q-Former alive, as the original does.
    config.objective = ml_collections.ConfigDict(
        {
            "embed": 5.0,
            "reconstruction": 2.0,
            "image": 0.5,
            "text": 0.5,
            "reconstruction_kind": "cosine",
            "frozen_dropout": False,
        }
    )
    # Against a collapse of the codebook; the original has none of it. `start` "kmeans", `ema_decay` e.g. 0.99,
    # `restart_after` steps without use, e.g. 200. `dead_after` is for the metric only.
    config.codebook = ml_collections.ConfigDict(
        {
            "start": "",
            "kmeans_iterations": 10,
            "kmeans_vectors": 32,  # for each code
            "ema_decay": 0.0,
            "restart_after": 0,
            "dead_after": 100,
        }
    )

    # Folders of Hugging Face files; `vision` "given" takes `meta["image_embedding"]` of the records instead; the text
    # teacher (text_encoder and tokenizer of Stable Diffusion 1) is for `model.text_branch`.
    config.teacher = ml_collections.ConfigDict(
        {"vision": "pretrained/CLIP-ViT-H-14-laion2B-s32B-b79K", "text": "", "text_vocabulary": ""}
    )

    config.data = ml_collections.ConfigDict()
    config.data.demo = False  # make a small data set from embedded photographs below the workdir
    config.data.parts = ({"path": "data/pairs", "weight": 1.0},)
    config.data.held = ""  # shards of pictures with captions to evaluate on
    config.data.vocabulary = ""  # vocab.txt of bert-base-uncased or its folder; "" takes that of `start.init`
    config.data.batch_size = 16384  # 64 GPUs x 256
    config.data.text_length = 32
    config.data.augment = True
    config.data.crop_scale = (0.5, 1.0)  # spec A.1
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.flip = 0.5
    config.data.workers = 8  # processes of each host that decode and augment; 0 uses threads
    config.data.prefetch = 4  # batches

    # Codebook use, and retrieval of held pairs; `most` pictures at most, 0 for all.
    config.evaluate = ml_collections.ConfigDict({"every_steps": 1000, "text_length": 35, "most": 5000})

    config.optimizer = ml_collections.ConfigDict(
        {
            "schedule": "epochs",
            "peak_lr": 1e-4,
            "min_lr_ratio": 0.1,  # 1e-5
            "warmup_start_ratio": 0.01,  # 1e-6
            "warmup_steps": 2000,
            "epoch_steps": 5000,
            "epochs": 500,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.05,  # of the codebook, too
            "clip_norm": 0.0,  # the original does not clip
            "accumulation": 1,
        }
    )
    config.precision = ml_collections.ConfigDict({"frozen": "bfloat16", "compute": "bfloat16"})
    config.mesh = ml_collections.ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1})
    config.checkpoint = ml_collections.ConfigDict({"every_steps": 5000, "keep_last": 3, "keep_every": 0})
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.steps = 300
    config.log_every = 10
    config.model.sizes = "tiny"
    config.model.joint_width = 32
    config.model.dropout = 0.0
    config.model.remat = False
    config.teacher.vision = "untrained"  # random weights: an embedding all the same
    config.data.demo = True
    config.data.parts = ()
    config.data.batch_size = 24
    config.data.text_length = 16
    config.data.workers = 0
    config.evaluate.every_steps = 50
    config.evaluate.text_length = 16
    config.optimizer.peak_lr = 5e-3  # a small model stands large steps
    config.optimizer.warmup_steps = 20
    config.optimizer.epoch_steps = 50
    config.optimizer.epochs = 6
    config.precision = ml_collections.ConfigDict({"frozen": "float32", "compute": "float32"})
    config.checkpoint.every_steps = 100
