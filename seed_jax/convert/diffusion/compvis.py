"""Names of CompVis' single-file checkpoints (`sd-v1-4.ckpt`) for the tensors of a diffusers folder."""

import re
from pathlib import Path

import jax

from seed_jax.convert.diffusion.diffusers_import import POSITION_BUFFER, key_table
from seed_jax.convert.diffusion.stable_diffusion import ImportedStableDiffusion, abstract_params
from seed_jax.convert.key_table import assemble_lazily, expected_shapes, promoted_dtype
from seed_jax.convert.tensors import LazyTensor, Shape, TensorDict, check_tensors, open_tensors
from seed_jax.errors import UserError
from seed_jax.models.diffusion import StableDiffusionConfig
from seed_jax.precision import as_dtype
from seed_jax.typing import Tree

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
# What a training checkpoint holds besides the networks: schedules, moving averages, losses of the autoencoder.
_EXTRAS = re.compile(
    rf"model_ema\..*|{re.escape(VAE)}loss\..*|{re.escape(TEXT + POSITION_BUFFER)}|betas|log_one_minus_alphas_cumprod"
    r"|(sqrt_)?(recip(m1)?_)?(one_minus_)?alphas_cumprod(_prev)?|posterior_.*|lvlb_weights|logvar|scale_factor"
)
_UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.attentions.0": "middle_block.1",
}  # fmt: skip
_VAE_MID = {"resnets.0": "block_1", "resnets.1": "block_2", "attentions.0": "attn_1"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def open_checkpoint(
    path: str | Path, config: StableDiffusionConfig | None = None, *, dtype: str | None = None
) -> ImportedStableDiffusion:
    """Open a single-file checkpoint; weights are read when their lazy arrays are indexed.

    Args:
        path: `.ckpt` (read as data, code in it is never executed) or `.safetensors`.
        config: sizes; default: those of Stable Diffusion 1.
        dtype: of the parameters; default: that of each part's tensors.

    Raises:
        UserError: a tensor is missing, unknown or of another shape, as in other releases of Stable Diffusion.
    """
    config = config or StableDiffusionConfig.full()
    tensors = open_tensors(path)
    if not any(name.startswith(UNET) for name in tensors):
        raise UserError(f"{path} is not a checkpoint of Stable Diffusion: no tensor's name begins with {UNET}.")
    abstract = abstract_params(config)
    tables = {part: key_table(part, tree) for part, tree in abstract.items()}
    shapes = {part: expected_shapes(tables[part], tree) for part, tree in abstract.items()}
    names = {part: {name: compvis_name(part, name, config) for name in shapes[part]} for part in shapes}
    expected = {
        names[part][name]: _stored_shape(part, name, shape) for part in shapes for name, shape in shapes[part].items()
    }
    check_tensors(expected, tensors, ignore=[name for name in tensors if _EXTRAS.fullmatch(name)])
    params: Tree = {}
    files: dict[str, TensorDict] = {}
    for part, tree in abstract.items():
        renamed = {name: _reshaped(tensors[stored], shapes[part][name]) for name, stored in names[part].items()}
        files[part] = TensorDict(renamed, tensors.source)
        read = as_dtype(dtype or str(promoted_dtype(tensor.dtype for tensor in renamed.values())))
        target = jax.tree.map(lambda leaf, to=read: jax.ShapeDtypeStruct(leaf.shape, to), tree)
        params[part] = assemble_lazily(tables[part], files[part], target)
    return ImportedStableDiffusion(config, params, None, files)


def compvis_name(part: str, name: str, config: StableDiffusionConfig) -> str:
    """Return CompVis' name of a tensor.

    Args:
        part: "unet", "vae" or "text".
        name: in a diffusers folder.
        config: sizes, which the numbers of blocks depend on.
    """
    if part == "text":
        return TEXT + name
    return UNET + _unet_name(name, config) if part == "unet" else VAE + _vae_name(name, config)


def _unet_name(name: str, config: StableDiffusionConfig) -> str:
    for ours, theirs in _UNET_TOP.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(\w+)\.(\w+)", name):
        return f"middle_block.{2 * int(match[1])}.{_UNET_RESNET[match[2]]}.{match[3]}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    assert match is not None, name
    way, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    layers = config.unet.layers_per_block + 1
    if way == "down":
        block = f"input_blocks.{1 + level * layers + index}"
        sampler = f"input_blocks.{(level + 1) * layers}.0.op"
    else:
        block = f"output_blocks.{level * layers + index}"
        has_attention = config.unet.cross_attention[::-1][level]
        sampler = f"output_blocks.{level * layers + layers - 1}.{2 if has_attention else 1}.conv"
    if kind.endswith("samplers"):
        return f"{sampler}.{rest.removeprefix('conv.')}"
    if kind == "attentions":
        return f"{block}.1.{rest}"
    module, leaf = rest.rsplit(".", 1)
    return f"{block}.0.{_UNET_RESNET[module]}.{leaf}"


def _vae_name(name: str, config: StableDiffusionConfig) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if match := re.fullmatch(r"(\w+)\.mid_block\.(\w+\.\d)\.(.*)\.(\w+)", name):
        module = _VAE_ATTENTION.get(match[3], match[3]) if match[2].startswith("attentions") else match[3]
        return f"{match[1]}.mid.{_VAE_MID[match[2]]}.{module}.{match[4]}"
    if match := re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        network, way, level, kind, index, rest = match.groups()
        number = int(level) if way == "down" else len(config.vae.block_channels) - 1 - int(level)
        block = f"{network}.{way}.{number}"
        return f"{block}.{way}sample.{rest}" if kind.endswith("samplers") else f"{block}.block.{index}.{rest}"
    return name


def _stored_shape(part: str, name: str, shape: Shape) -> Shape:
    """Return the shape in the checkpoint: the autoencoder's attention is made of 1 x 1 convolutions."""
    is_projection = part == "vae" and ".attentions." in name and len(shape) == 2
    return (*shape, 1, 1) if is_projection else shape


def _reshaped(tensor: LazyTensor, shape: Shape) -> LazyTensor:
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))
