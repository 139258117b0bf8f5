"""Evaluate a model on the benchmarks of the papers, with the settings of their protocol.

    seed-jax eval --config eval:paper --model models/seed_llama_8b --out runs/eval_8b
    python -m seed_jax.main --config=configs/eval.py:paper --workdir=runs/eval_8b --config.model.directory=models/8b

Variants
    paper     every table of the SEED-LLaMA paper: captions, questions about images and videos, SEED-Bench, drawn
              images, the share of complete images. Of SEED-1 also GQA and retrieval.
    captions  COCO captions alone, greedily and 500 images: a first look within minutes.

Each entry of `tasks` is a task of `seed-jax eval --list` with its data below `data_root`; change one with
`--set tasks.vqav2.limit=1000`, and leave others out by naming those to run. All options:
`seed_jax.train.config.evaluation.EvaluationConfig`.
"""

from typing import Any

import ml_collections

from seed_jax.errors import UserError
from seed_jax.train.config import base
from seed_jax.train.config.evaluation import EvaluationConfig, TaskConfig

VARIANTS = ("paper", "captions")
# Decoding of the protocol, written out so that it is versioned with this file. Beams are ranked as transformers 4.30.2
# did, by log p / (prompt + answer) ** penalty.
_BEAMS = {"beams": 5, "temperature": 0.0, "length_penalty": 1.0, "length_penalty_on": "sequence"}
CAPTION = {**_BEAMS, "max_new_tokens": 64}
ANSWER = {**_BEAMS, "max_new_tokens": 20}
IMAGE = {**_BEAMS, "beams": 4, "max_new_tokens": 34, "seed": 42}


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """Return the config of a variant."""
    if variant not in VARIANTS:
        raise UserError(f"configs/eval.py has no variant {variant!r}: expected {' or '.join(VARIANTS)}.")
    config = base(EvaluationConfig)
    config.data_root = "data"
    config.model.clip = "pretrained/clip-vit-large-patch14"
    config.model.text_vocabulary = "pretrained/bert-base-uncased"
    config.tasks = ml_collections.ConfigDict()
    for name, options in (_paper() if variant == "paper" else _captions()).items():
        config.tasks[name] = base(TaskConfig, **options)
    return config


def _captions() -> dict[str, dict[str, Any]]:
    return {"coco_caption": {"data": "coco", "limit": 500, "decoding": {**CAPTION, "beams": 1}}}


def _paper() -> dict[str, dict[str, Any]]:
    return {
        # Table of image understanding.
        "coco_caption": {"data": "coco", "decoding": CAPTION},
        "vqav2": {"data": "coco", "split": "val2014", "decoding": ANSWER},
        "okvqa": {"data": "okvqa", "images": "coco", "split": "val2014", "decoding": ANSWER},
        "vizwiz": {"data": "vizwiz", "split": "val", "decoding": ANSWER},
        "seed_bench": {"data": "seed_bench"},
        "gqa": {"data": "gqa", "split": "testdev", "decoding": ANSWER},
        # Table of video understanding.
        "msvd_qa": {"data": "msvd", "split": "test", "frames": 4, "decoding": ANSWER},
        "msrvtt_qa": {"data": "msrvtt", "split": "test", "frames": 4, "decoding": ANSWER},
        "nextqa_open": {"data": "nextoe", "split": "test", "frames": 8, "wordnet": "wordnet", "decoding": ANSWER},
        # Table of image generation.
        "reconstruction_coco": {"task": "reconstruction", "data": "coco"},
        "reconstruction_flickr30k": {"task": "reconstruction", "data": "flickr30k"},
        "text_to_image_coco": {"task": "text_to_image", "data": "coco", "decoding": IMAGE},
        "text_to_image_flickr30k": {"task": "text_to_image", "data": "flickr30k", "decoding": IMAGE},
        "valid_images": {"data": "coco", "limit": 5000},
        # Table of retrieval.
        "retrieval_coco": {"task": "retrieval", "data": "coco"},
        "retrieval_flickr30k": {"task": "retrieval", "data": "flickr30k"},
    }
