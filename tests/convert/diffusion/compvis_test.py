"""CompVis' names against diffusers' own conversion of single-file checkpoints."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.diffusion.compvis import TEXT, UNET, VAE, compvis_name, open_checkpoint
from seed_jax.convert.diffusion.diffusers_import import key_table
from seed_jax.convert.diffusion.stable_diffusion import ImportedStableDiffusion, import_stable_diffusion
from seed_jax.convert.key_table import disassemble
from seed_jax.errors import UserError
from tests.support import golden


@functools.cache
def imported() -> ImportedStableDiffusion:
    return import_stable_diffusion(golden.path("sd14_tiny/diffusion_model"))


@functools.cache
def checkpoint() -> dict[str, np.ndarray]:
    """Return the tiny decoder under CompVis' names."""
    tensors = {}
    for part, tree in imported().params.items():
        for name, array in disassemble(key_table(part, tree), tree):
            is_projection = part == "vae" and ".attentions." in name and array.ndim == 2
            tensors[compvis_name(part, name, imported().config)] = array[..., None, None] if is_projection else array
    return tensors


def test_names_equal_those_of_diffusers_conversion():
    torch = pytest.importorskip("torch")
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in checkpoint().items()}
    unet_config = {"layers_per_block": 1, "class_embed_type": None, "addition_embed_type": None}
    converted = {
        "unet": single_file.convert_ldm_unet_checkpoint(dict(tensors), unet_config),
        "vae": single_file.convert_ldm_vae_checkpoint(
            dict(tensors), dict.fromkeys(("down_block_types", "up_block_types"), [0] * 4)
        ),
        "text": {name.removeprefix(TEXT): tensor for name, tensor in tensors.items() if name.startswith(TEXT)},
    }
    for part, tree in imported().params.items():
        original = dict(disassemble(key_table(part, tree), tree))
        assert converted[part].keys() == original.keys()
        for name, array in original.items():
            np.testing.assert_array_equal(converted[part][name].numpy(), array, err_msg=name)


def test_checkpoint_is_read_back_and_training_state_is_ignored(tmp_path):
    extras = {"model_ema.decay": np.ones(1, np.float32), "sqrt_one_minus_alphas_cumprod": np.ones(3, np.float32)}
    save_file({n: np.ascontiguousarray(a) for n, a in checkpoint().items()} | extras, tmp_path / "sd.safetensors")
    found = open_checkpoint(tmp_path / "sd.safetensors", imported().config)
    jax.tree.map(np.testing.assert_array_equal, materialize(found.params), imported().params)


def test_other_checkpoints_are_refused(tmp_path):
    changed = {n: np.ascontiguousarray(a) for n, a in checkpoint().items()}
    changed |= {f"{UNET}surprise": np.ones(2, np.float32)}
    del changed[f"{VAE}quant_conv.bias"]
    save_file(changed, tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match=rf"missing: {VAE}quant_conv\.bias; unexpected: {UNET}surprise"):
        open_checkpoint(tmp_path / "sd.safetensors", imported().config)
    save_file({"a": np.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a checkpoint of Stable Diffusion"):
        open_checkpoint(tmp_path / "other.safetensors")


def test_code_in_a_checkpoint_is_never_executed(tmp_path):
    torch = pytest.importorskip("torch")

    class Code:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"state_dict": Code()}, tmp_path / "sd.ckpt")
    with pytest.raises(UserError, match="never executed"):
        open_checkpoint(tmp_path / "sd.ckpt")
