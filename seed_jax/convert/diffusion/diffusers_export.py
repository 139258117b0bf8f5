"""Write the decoder as a diffusers folder that PyTorch diffusers loads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_jax import files
from seed_jax.convert.diffusion import config as configs
from seed_jax.convert.diffusion.diffusers_import import FOLDERS, as_files
from seed_jax.convert.key_table import widest
from seed_jax.convert.safetensors_writer import write_safetensors
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.precision import as_dtype

PIPELINE = "StableUnCLIPImg2ImgPipeline"
# What the original pipeline holds besides the decoder: it never runs when an embedding is given, but must be there.
IMAGE_SIDE = ("image_encoder", "feature_extractor")
_CLASSES = {
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
    "image_noising_scheduler": ("diffusers", "DDPMScheduler"),
    "image_normalizer": ("stable_diffusion", "StableUnCLIPImageNormalizer"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def export_unclip(
    config: UnclipConfig,
    params: Mapping[str, Any],
    vocabulary: ClipVocabulary,
    out: str | Path,
    *,
    dtype: str | None = None,
    image_side: str | Path | None = None,
) -> None:
    """Write a diffusers folder, a tensor at a time; it appears whole or not at all.

    Args:
        params: arrays, lazy ones too.
        dtype: number format of the weights, by default each part's own.
        image_side: a diffusers folder whose image encoder and feature extractor are copied along. Without them the
            folder loads with `image_encoder=None, feature_extractor=None`.
    """
    copied = [] if image_side is None else [Path(image_side) / name for name in IMAGE_SIDE]
    for source in copied:
        if not source.is_dir():
            raise UserError(f"{source} does not exist: --image-encoder must be a diffusers folder that has it.")
    with files.new_directory(out) as folder:
        for name, content in folder_files(config).items():
            _write_json(folder / name, content)
        for part, tensors in as_files(params, "the model").items():
            name, stem = FOLDERS[part]
            stored = as_dtype(dtype) if dtype else widest(tensor.dtype for tensor in tensors.values())
            shapes = {key: tensor.shape for key, tensor in tensors.items()}
            values = ((key, tensor.read()) for key, tensor in tensors.items())
            write_safetensors(folder / name / f"{stem}.safetensors", shapes, stored, values)
        (folder / "tokenizer").mkdir()
        vocabulary.save(folder / "tokenizer")
        for source in copied:
            shutil.copytree(source, folder / source.name)
        _write_json(folder / "model_index.json", _index(config, with_image_side=bool(copied)))


def folder_files(config: UnclipConfig) -> dict[str, dict[str, Any]]:
    """Return the JSON files of the folder but for the index: name -> content."""
    scheduler = _scheduler(config)
    cross = config.unet.cross_attention
    unet = {
        "_class_name": "UNet2DConditionModel",
        **_theirs(config.unet, configs.UNET_KEYS),
        **configs.UNET_FIXED,
        "attention_head_dim": list(config.unet.num_heads),
        "transformer_layers_per_block": config.unet.transformer_layers,
        "upcast_attention": config.unet.upcast_attention,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
    }
    levels = len(config.vae.block_channels)
    vae = {
        "_class_name": "AutoencoderKL",
        **_theirs(config.vae, configs.VAE_KEYS),
        **configs.VAE_FIXED,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    text = {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        **_theirs(config.text, configs.TEXT_KEYS),
    }
    text |= {f"{name}_token_id": getattr(config.prompt, name) for name in ("bos", "eos", "pad")}
    same = {key: key for key in configs.NOISE_KEYS}
    return {
        "unet/config.json": unet,
        "vae/config.json": vae,
        "text_encoder/config.json": {**text, "projection_dim": config.text.hidden_size},
        "image_normalizer/config.json": {
            "_class_name": "StableUnCLIPImageNormalizer",
            "embedding_dim": config.embedding_width,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": scheduler, **_theirs(config.noise, same), **configs.SCHEDULER_FIXED[scheduler],
        },
        "image_noising_scheduler/scheduler_config.json": {
            "_class_name": "DDPMScheduler", **_theirs(config.embedding_noise, same),
        },
    }  # fmt: skip


def _scheduler(config: UnclipConfig) -> str:
    return next(name for name, sampler in configs.SCHEDULERS.items() if sampler == config.sampler)


def _theirs(sizes: Any, keys: dict[str, str]) -> dict[str, Any]:
    found = {theirs: getattr(sizes, ours) for ours, theirs in keys.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _index(config: UnclipConfig, *, with_image_side: bool) -> dict[str, Any]:
    parts = {**_CLASSES, "scheduler": ("diffusers", _scheduler(config))}
    if not with_image_side:
        parts |= dict.fromkeys(IMAGE_SIDE, (None, None))
    return {"_class_name": PIPELINE, **{name: list(parts[name]) for name in sorted(parts)}}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
