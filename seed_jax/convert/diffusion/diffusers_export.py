"""Export a decoder, unCLIP or Stable Diffusion 1, as a folder that PyTorch diffusers loads."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.diffusion import folder_config
from seed_jax.convert.diffusion.diffusers_import import IMAGE_SIDE, WEIGHT_FOLDERS, to_diffusers_tensors
from seed_jax.convert.key_table import promoted_dtype
from seed_jax.convert.model_card.card import write_export_card
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.files import new_directory, write_json
from seed_jax.models.diffusion import StableDiffusionConfig, UnclipConfig
from seed_jax.precision import as_dtype

PIPELINE, STABLE_DIFFUSION_PIPELINE = "StableUnCLIPImg2ImgPipeline", "StableDiffusionPipeline"
_COMPONENT_CLASSES = {
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
    model: str | Path, out: str | Path, *, dtype: str | None = None, image_side: str | Path | None = None
) -> None:
    """Export an unCLIP decoder as a diffusers folder, one tensor at a time.

        export_unclip("runs/decoder", "unclip", image_side="weights/unclip")
        diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained("unclip")

    Args:
        model: model directory or training workdir.
        out: folder to write, atomically; must be missing or empty.
        dtype: float32, bfloat16 or float16; default: that of each part.
        image_side: a diffusers folder, or model directory of an imported decoder, whose image encoder and feature
            extractor are copied; default: those of `model`. The PyTorch pipeline cannot run without them.

    Raises:
        UserError: the model is not an unCLIP decoder, there is no image encoder, or `dtype` cannot represent a value.
    """
    decoder = model_dir.open_lazily(model, ModelKind.UNCLIP)
    config = UnclipConfig.from_dict(decoder.config.get("sizes", {}), decoder.config_path)
    vocabulary = ClipVocabulary.load(decoder.directory)
    if image_side is None and not all((decoder.directory / name).is_dir() for name in IMAGE_SIDE):
        raise UserError(
            f"{model} has no image encoder, without which the PyTorch pipeline cannot run: give a diffusers folder or "
            "an imported decoder that has one with --image-encoder."
        )
    write_unclip(
        config,
        model_dir.decoder_params(decoder.params),
        vocabulary,
        out,
        dtype=dtype,
        image_side=image_side or decoder.directory,
        model=model,
    )


def write_unclip(
    config: UnclipConfig,
    params: Mapping[str, Any],
    vocabulary: ClipVocabulary,
    out: str | Path,
    *,
    image_side: str | Path,
    dtype: str | None = None,
    model: str | Path | None = None,
) -> None:
    """Write a diffusers folder from parameters in memory or lazy arrays; see `export_unclip`.

    Args:
        params: part -> tree of arrays or lazy arrays.
        model: the directory that the parameters are from, for the model card; without it there is none.
    """
    copied = [Path(image_side) / name for name in IMAGE_SIDE]
    for source in copied:
        if not source.is_dir():
            raise UserError(f"{source} does not exist: --image-encoder must be a folder that has it.")
    with new_directory(out) as folder:
        _write_parts(folder, config, params, vocabulary, dtype)
        for source in copied:
            shutil.copytree(source, folder / source.name)
        if model is not None:
            write_export_card(
                folder,
                model,
                title="SEED's unCLIP decoder",
                library="diffusers",
                pipeline="image-to-image",
                load=f'from diffusers import {PIPELINE}\n\npipeline = {PIPELINE}.from_pretrained(".")',
                import_arguments=f"unclip --from {Path(out).name}",
                script=True,
            )


def export_stable_diffusion(
    model: str | Path, out: str | Path, *, dtype: str | None = None, text_tokenizer: str | Path | None = None
) -> None:
    """Export a Stable Diffusion decoder as a diffusers folder without safety checker, one tensor at a time.

        export_stable_diffusion("runs/decoder", "sd")
        diffusers.StableDiffusionPipeline.from_pretrained("sd")

    Args:
        model: model directory or training workdir.
        out: folder to write, atomically; must be missing or empty.
        dtype: float32, bfloat16 or float16; default: that of each part.
        text_tokenizer: folder with the text encoder's vocabulary; default: the model's own, which one imported from a
            single file does not have.

    Raises:
        UserError: the model is not a Stable Diffusion decoder, has no vocabulary, or `dtype` cannot represent a value.
    """
    decoder = model_dir.open_lazily(model, ModelKind.STABLE_DIFFUSION)
    config = StableDiffusionConfig.from_dict(decoder.config.get("sizes", {}), decoder.config_path)
    if text_tokenizer is None and not (decoder.directory / "vocab.json").is_file():
        raise UserError(
            f"{model} has no vocabulary of the text encoder, as one imported from a single file or trained from "
            "scratch: give the folder `tokenizer` of Stable Diffusion 1.4 with --text-tokenizer."
        )
    vocabulary = ClipVocabulary.load(text_tokenizer or decoder.directory)
    with new_directory(out) as folder:
        _write_parts(folder, config, model_dir.decoder_params(decoder.params), vocabulary, dtype)
        write_export_card(
            folder,
            model,
            title="SEED-1's Stable Diffusion decoder",
            library="diffusers",
            pipeline="text-to-image",
            load=f"from diffusers import {STABLE_DIFFUSION_PIPELINE}\n\n"
            f'pipeline = {STABLE_DIFFUSION_PIPELINE}.from_pretrained(".")',
            import_arguments=f"sd --from {Path(out).name}",
            script=False,  # it needs the unCLIP decoder
        )


def _write_parts(
    folder: Path,
    config: UnclipConfig | StableDiffusionConfig,
    params: Mapping[str, Any],
    vocabulary: ClipVocabulary,
    dtype: str | None,
) -> None:
    """Write the configs, weights and text tokenizer of a decoder."""
    for name, content in folder_files(config).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, content)
    for part, tensors in to_diffusers_tensors(params, "the model").items():
        name, stem = WEIGHT_FOLDERS[part]
        stored = as_dtype(dtype) if dtype else promoted_dtype(tensor.dtype for tensor in tensors.values())
        write_lazy_tensors(folder / name / f"{stem}.safetensors", tensors, stored)
    (folder / "tokenizer").mkdir()
    vocabulary.save(folder / "tokenizer")
    write_json(folder / "model_index.json", _model_index(config))


def folder_files(config: UnclipConfig | StableDiffusionConfig) -> dict[str, dict[str, Any]]:
    """Return the JSON files of the folder except the index: path -> content."""
    scheduler, is_unclip = _scheduler(config), isinstance(config, UnclipConfig)
    cross = config.unet.cross_attention
    unet = {
        "_class_name": "UNet2DConditionModel",
        **_diffusers_keys(config.unet, folder_config.UNET_KEYS),
        **folder_config.UNET_FIXED,
        **({} if is_unclip else {"class_embed_type": None}),
        "attention_head_dim": list(config.unet.num_heads),
        "transformer_layers_per_block": config.unet.transformer_layers,
        "upcast_attention": config.unet.upcast_attention,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
    }
    levels = len(config.vae.block_channels)
    vae = {
        "_class_name": "AutoencoderKL",
        **_diffusers_keys(config.vae, folder_config.VAE_KEYS),
        **folder_config.VAE_FIXED,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    text = {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        **_diffusers_keys(config.text, folder_config.TEXT_KEYS),
    }
    text |= {f"{name}_token_id": getattr(config.prompt, name) for name in ("bos", "eos", "pad")}
    same = {key: key for key in folder_config.NOISE_KEYS}
    files = {
        "unet/config.json": unet,
        "vae/config.json": vae,
        "text_encoder/config.json": {**text, "projection_dim": config.text.hidden_size},
        "scheduler/scheduler_config.json": {
            "_class_name": scheduler, **_diffusers_keys(config.noise, same), **folder_config.SCHEDULER_FIXED[scheduler],
        },
    }  # fmt: skip
    if isinstance(config, UnclipConfig):
        files["image_normalizer/config.json"] = {
            "_class_name": "StableUnCLIPImageNormalizer",
            "embedding_dim": config.embedding_width,
        }
        noise = {"_class_name": "DDPMScheduler", **_diffusers_keys(config.embedding_noise, same)}
        files["image_noising_scheduler/scheduler_config.json"] = noise
    return files


def _scheduler(config: UnclipConfig | StableDiffusionConfig) -> str:
    return next(name for name, sampler in folder_config.SCHEDULERS.items() if sampler == config.sampler)


def _diffusers_keys(config: Any, keys: dict[str, str]) -> dict[str, Any]:
    """Return diffusers' key -> value of our fields; tuples become lists."""
    values = {key: getattr(config, field) for field, key in keys.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _model_index(config: UnclipConfig | StableDiffusionConfig) -> dict[str, Any]:
    scheduler = {"scheduler": ("diffusers", _scheduler(config))}
    if isinstance(config, UnclipConfig):
        parts = {**_COMPONENT_CLASSES, **scheduler}
        return {"_class_name": PIPELINE, **{name: list(parts[name]) for name in sorted(parts)}}
    parts = {name: _COMPONENT_CLASSES[name] for name in ("text_encoder", "tokenizer", "unet", "vae")} | scheduler
    # The checker is not part of SEED (spec G); without these keys diffusers warns of its absence.
    absent = {name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")}
    return {
        "_class_name": STABLE_DIFFUSION_PIPELINE,
        "requires_safety_checker": False,
        **absent,
        **{name: list(parts[name]) for name in sorted(parts)},
    }
