"""Read the JSON files of a diffusers folder into model configs (spec B.3, B.4).

Every key is either a field of a config, required to have the one value that is implemented, or known to have no effect.
Any other key or value is refused by name: ignoring it would change the images.
"""

from pathlib import Path
from typing import Any

from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.files import read_json
from seed_jax.models.clip.text import ClipTextConfig, PromptTokens
from seed_jax.models.config_io import MAX_ENTRIES, from_dict
from seed_jax.models.diffusion.noise_schedule import NoiseScheduleConfig
from seed_jax.models.diffusion.unet import UNetConfig
from seed_jax.models.diffusion.vae import VAEConfig

SCHEDULERS = {"PNDMScheduler": "pndm", "DDIMScheduler": "ddim", "DPMSolverMultistepScheduler": "dpmpp"}

# Our fields -> diffusers' keys, with diffusers' default where the file may omit the key.
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
# Keys that `read_unet` converts itself.
_UNET_CONVERTED = {"num_attention_heads", "attention_head_dim", "transformer_layers_per_block", "upcast_attention"}

VAE_KEYS = {
    "sample_size": "sample_size", "in_channels": "in_channels", "out_channels": "out_channels",
    "latent_channels": "latent_channels", "block_channels": "block_out_channels",
    "layers_per_block": "layers_per_block", "norm_groups": "norm_num_groups", "scaling_factor": "scaling_factor",
}  # fmt: skip
VAE_DEFAULTS = {"norm_num_groups": 32, "scaling_factor": 0.18215}
VAE_FIXED = {"act_fn": "silu"}
# `force_upcast` concerns float16, which the autoencoder never uses here. Those in VAE_TRUE must be true if present.
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
NOISE_VALUES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
}
# Per class: its own defaults, its required values, and the keys that have no effect given those.
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
# Keys whose default in diffusers is not the required value.
DEFAULT_DIFFERS = {"class_embed_type", "skip_prk_steps", "clip_sample"}
META = {"_class_name", "_diffusers_version", "_name_or_path"}


_REMEDY = "give a complete diffusers folder of an unCLIP Stable Diffusion"


def read_unet(path: Path, *, class_labels: bool = True) -> UNetConfig:
    """Read `unet/config.json`.

    Args:
        path: of the file.
        class_labels: whether the UNet has class labels, as unCLIP's; Stable Diffusion's has none.

    Raises:
        UserError: names every key whose value is not supported; the same holds for the other readers.
    """
    file = read_json(path, _REMEDY)
    class_width = {} if class_labels else {UNET_KEYS["class_width"]: None}
    values = _values(path, file, UNET_KEYS, UNET_DEFAULTS | class_width)
    down = _list(path, file, "down_block_types")
    cross = tuple(kind == "CrossAttnDownBlock2D" for kind in down)
    required = {
        **UNET_FIXED,
        **({} if class_labels else {"class_embed_type": None}),
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
    }
    _check_supported(path, file, required, {*UNET_KEYS.values(), *UNET_IGNORED, *_UNET_CONVERTED})
    # `attention_head_dim` is a misnomer of old files: both keys count heads.
    heads = file.get("num_attention_heads") or file.get("attention_head_dim")
    values |= {
        "cross_attention": cross,
        "num_heads": [heads] * len(cross) if isinstance(heads, int) else heads,
        "transformer_layers": _single_value(path, file, "transformer_layers_per_block", 1),
        "upcast_attention": bool(file.get("upcast_attention")),
    }
    return from_dict(UNetConfig, values, str(path))


def read_vae(path: Path) -> VAEConfig:
    """Read `vae/config.json`."""
    file = read_json(path, _REMEDY)
    levels = len(_list(path, file, "block_out_channels"))
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    true = {key: True for key in VAE_TRUE if key in file}
    _check_supported(path, file, {**VAE_FIXED, **blocks, **true}, {*VAE_KEYS.values(), *VAE_IGNORED})
    return from_dict(VAEConfig, _values(path, file, VAE_KEYS, VAE_DEFAULTS), str(path))


def read_text(path: Path) -> ClipTextConfig:
    """Read `text_encoder/config.json`; its special token ids are not used, they are wrong in the released file."""
    file = read_json(path, _REMEDY)
    if file.get("model_type") != "clip_text_model":
        raise UserError(f"{path}: model_type is {file.get('model_type')!r}, only 'clip_text_model' is supported.")
    return from_dict(ClipTextConfig, _values(path, file, TEXT_KEYS, TEXT_DEFAULTS), str(path))


def read_prompt(vocabulary: ClipVocabulary) -> PromptTokens:
    """Return the special token ids of a prompt."""
    return PromptTokens(*(vocabulary.ids[symbol] for symbol in (vocabulary.bos, vocabulary.eos, vocabulary.pad)))


def read_scheduler(path: Path) -> tuple[str, NoiseScheduleConfig]:
    """Read the sampler and its noise schedule from `scheduler/scheduler_config.json`."""
    file = read_json(path, _REMEDY)
    kind = file.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise UserError(f"{path}: the scheduler {kind!r} is not supported, only {', '.join(SCHEDULERS)}.")
    _check_supported(path, file, SCHEDULER_FIXED[kind], {*NOISE_KEYS, *SCHEDULER_IGNORED})
    return SCHEDULERS[kind], _noise(path, {**SCHEDULER_DEFAULTS[kind], **file})


def read_embedding_noise(path: Path) -> NoiseScheduleConfig:
    """Read the noise schedule from `image_noising_scheduler/scheduler_config.json`."""
    file = read_json(path, _REMEDY)
    _check_supported(path, file, {}, {*NOISE_KEYS, *SCHEDULER_IGNORED})
    return _noise(path, file)


def _noise(path: Path, file: dict[str, Any]) -> NoiseScheduleConfig:
    values = _values(path, file, {key: key for key in NOISE_KEYS}, NOISE_DEFAULTS)
    for key, supported in NOISE_VALUES.items():
        if values[key] not in supported:
            raise UserError(f"{path}: {key} is {values[key]!r}, supported: {', '.join(supported)}.")
    return from_dict(NoiseScheduleConfig, values, str(path))


def _values(path: Path, file: dict[str, Any], keys: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return field -> value."""
    missing = [key for key in keys.values() if key not in file and key not in defaults]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not the file of an unCLIP Stable Diffusion.")
    return {field: file.get(key, defaults.get(key)) for field, key in keys.items()}


def _check_supported(path: Path, file: dict[str, Any], required: dict[str, Any], known: set[str]) -> None:
    """Refuse every key whose value would change the computation in a way that is not implemented.

    Args:
        required: key -> the only supported value.
        known: keys that are read elsewhere or have no effect.
    """
    problems = [
        f"{key} is {file.get(key)!r}, only {value!r} is supported"
        for key, value in required.items()
        if file.get(key, None if key in DEFAULT_DIFFERS else value) != value
    ]
    unknown = set(file) - known - set(required) - META
    problems += [
        f"{key} is {file[key]!r}, which is unknown" for key in sorted(unknown) if file[key] not in (None, False)
    ]
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}.")


def _list(path: Path, file: dict[str, Any], key: str) -> list[Any]:
    """Return a list with one entry per level."""
    value = file.get(key, [])
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise UserError(f"{path}: {key} should be a list with an entry per level, at most {MAX_ENTRIES}.")
    return value


def _single_value(path: Path, file: dict[str, Any], key: str, default: Any) -> Any:
    """Return a value that is given once for all levels, or is equal for all of them."""
    value = file.get(key, default)
    values = value if isinstance(value, list) else [value]
    if not values or any(other != values[0] for other in values):
        raise UserError(f"{path}: {key} is {value}, only one number for all blocks is supported.")
    return values[0]
