"""The JSON files of a diffusers folder to and from our sizes (spec B.3, B.4).

What our computation fixes must be what the files say: another value, and a switch nobody here has heard of, is refused
by its name, because ignoring it would draw other pictures.
"""

import json
from pathlib import Path
from typing import Any

from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipTextConfig
from seed_jax.models.diffusion.unclip_config import NoiseConfig, PromptTokens, UNetConfig, VAEConfig

SCHEDULERS = {"PNDMScheduler": "pndm", "DDIMScheduler": "ddim", "DPMSolverMultistepScheduler": "dpmpp"}

# Ours -> theirs, with diffusers' default where the file may leave the key out.
UNET_KEYS = {
    "sample_size": "sample_size", "in_channels": "in_channels", "out_channels": "out_channels",
    "block_channels": "block_out_channels", "layers_per_block": "layers_per_block", "text_width": "cross_attention_dim",
    "class_width": "projection_class_embeddings_input_dim", "norm_groups": "norm_num_groups",
    "linear_projection": "use_linear_projection",
}  # fmt: skip
UNET_DEFAULTS = {"norm_num_groups": 32, "layers_per_block": 2, "use_linear_projection": False}
UNET_FIXED = {
    "class_embed_type": "projection", "act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0,
    "center_input_sample": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "downsample_padding": 1,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
}  # fmt: skip
UNET_IGNORED = {"addition_embed_type_num_heads", "attention_type", "dropout"}

VAE_KEYS = {
    "sample_size": "sample_size", "in_channels": "in_channels", "out_channels": "out_channels",
    "latent_channels": "latent_channels", "block_channels": "block_out_channels",
    "layers_per_block": "layers_per_block", "norm_groups": "norm_num_groups", "scaling_factor": "scaling_factor",
}  # fmt: skip
VAE_DEFAULTS = {"norm_num_groups": 32, "scaling_factor": 0.18215}
VAE_FIXED = {"act_fn": "silu"}
# `force_upcast` concerns float16, which is not used for the autoencoder here; the other three are true if present.
VAE_IGNORED = {"force_upcast"}
VAE_TRUE = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")

TEXT_KEYS = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "max_length": "max_position_embeddings",
    "activation": "hidden_act", "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
TEXT_DEFAULTS = {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "max_position_embeddings": 77}

NOISE_KEYS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type",
              "timestep_spacing", "steps_offset", "set_alpha_to_one")  # fmt: skip
NOISE_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": False,
}  # fmt: skip
# Per class: its own defaults, what it must say, and what has no effect once that is so.
SCHEDULER_DEFAULTS = {
    "PNDMScheduler": {},
    "DDIMScheduler": {"set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace"},
}
SCHEDULER_FIXED = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "DDIMScheduler": {"clip_sample": False},
    "DPMSolverMultistepScheduler": {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"},
}
SCHEDULER_IGNORED = {
    "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps",
    "variance_type", "lower_order_final", "lambda_min_clipped", "final_sigmas_type", "flow_shift", "time_shift_type",
}  # fmt: skip
# Where leaving the key out means another value than the one we need.
DEFAULT_DIFFERS = {"class_embed_type", "skip_prk_steps", "clip_sample"}
META = {"_class_name", "_diffusers_version", "_name_or_path"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or say which file is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: give a whole diffusers folder of an unCLIP Stable Diffusion.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again.") from error
    return content


def read_unet(path: Path) -> UNetConfig:
    """Read `unet/config.json`."""
    file = read_json(path)
    values = _values(path, file, UNET_KEYS, UNET_DEFAULTS)
    down = file.get("down_block_types", ())
    cross = tuple(kind == "CrossAttnDownBlock2D" for kind in down)
    wanted = {
        **UNET_FIXED,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
    }
    _refuse(path, file, wanted, {*UNET_KEYS.values(), *UNET_IGNORED, *_OWN})
    heads = file.get("num_attention_heads") or file.get("attention_head_dim")  # historic: both count heads
    return UNetConfig(
        **values,
        cross_attention=cross,
        num_heads=_per_level(heads, len(cross)),
        transformer_layers=_one(path, "transformer_layers_per_block", file.get("transformer_layers_per_block", 1)),
        upcast_attention=bool(file.get("upcast_attention")),
    )


_OWN = {"num_attention_heads", "attention_head_dim", "transformer_layers_per_block", "upcast_attention"}


def read_vae(path: Path) -> VAEConfig:
    """Read `vae/config.json`."""
    file = read_json(path)
    levels = len(file.get("block_out_channels", ()))
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    true = {key: True for key in VAE_TRUE if key in file}
    _refuse(path, file, {**VAE_FIXED, **blocks, **true}, {*VAE_KEYS.values(), *VAE_IGNORED})
    return VAEConfig(**_values(path, file, VAE_KEYS, VAE_DEFAULTS))


def read_text(path: Path) -> ClipTextConfig:
    """Read `text_encoder/config.json`; its special ids are not used, they are wrong in the released one."""
    file = read_json(path)
    if file.get("model_type") != "clip_text_model":
        raise UserError(f"{path}: model_type is {file.get('model_type')!r}, only 'clip_text_model' is supported.")
    return ClipTextConfig(**_values(path, file, TEXT_KEYS, TEXT_DEFAULTS))


def read_prompt(vocabulary: ClipVocabulary) -> PromptTokens:
    """Return the ids that frame a prompt."""
    return PromptTokens(*(vocabulary.ids[symbol] for symbol in (vocabulary.bos, vocabulary.eos, vocabulary.pad)))


def read_scheduler(path: Path) -> tuple[str, NoiseConfig]:
    """Read `scheduler/scheduler_config.json`: the sampler the checkpoint names, and its noise schedule."""
    file = read_json(path)
    kind = file.get("_class_name")
    if kind not in SCHEDULERS:
        raise UserError(f"{path}: the scheduler {kind!r} is not supported, only {', '.join(SCHEDULERS)}.")
    _refuse(path, file, SCHEDULER_FIXED[kind], {*NOISE_KEYS, *SCHEDULER_IGNORED})
    return SCHEDULERS[kind], _noise(path, {**SCHEDULER_DEFAULTS[kind], **file})


def read_embedding_noise(path: Path) -> NoiseConfig:
    """Read `image_noising_scheduler/scheduler_config.json`, of which only the noise schedule is used."""
    file = read_json(path)
    _refuse(path, file, {}, {*NOISE_KEYS, *SCHEDULER_IGNORED})
    return _noise(path, file)


def _noise(path: Path, file: dict[str, Any]) -> NoiseConfig:
    return NoiseConfig(**_values(path, file, {key: key for key in NOISE_KEYS}, NOISE_DEFAULTS))


def _values(path: Path, file: dict, keys: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
    missing = [theirs for theirs in keys.values() if theirs not in file and theirs not in defaults]
    if missing:
        raise UserError(f"{path} does not say {', '.join(missing)}: it is not the file of an unCLIP Stable Diffusion.")
    found = {ours: file.get(theirs, defaults.get(theirs)) for ours, theirs in keys.items()}
    return {ours: tuple(value) if isinstance(value, list) else value for ours, value in found.items()}


def _refuse(path: Path, file: dict[str, Any], wanted: dict[str, Any], known: set[str]) -> None:
    """Name every key whose value would change the computation in a way that is not built here."""
    wrong = [
        f"{key} is {file.get(key)!r}, only {value!r} is supported"
        for key, value in wanted.items()
        if file.get(key, None if key in DEFAULT_DIFFERS else value) != value
    ]
    strange = set(file) - known - set(wanted) - META
    wrong += [
        f"{key} is {file[key]!r}, which is not known here" for key in sorted(strange) if file[key] not in (None, False)
    ]
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}.")


def _per_level(value: int | list[int] | None, levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value or ())


def _one(path: Path, key: str, value: int | list[int]) -> int:
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1:
        raise UserError(f"{path}: {key} is {value}, only one number for all blocks is supported.")
    return values.pop()
