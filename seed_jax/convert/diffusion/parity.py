"""Parity reports of the decoders: compare a diffusers folder with our parameters, and the outputs of both models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint import kinds, model_dir
from seed_jax.checkpoint.lazy import load_on_device
from seed_jax.convert.diffusion.compvis import open_checkpoint
from seed_jax.convert.diffusion.diffusers_import import (
    WEIGHT_FOLDERS,
    ImportedUnclip,
    open_unclip,
    to_diffusers_tensors,
)
from seed_jax.convert.diffusion.stable_diffusion import ImportedStableDiffusion, open_stable_diffusion
from seed_jax.convert.key_table import promoted_dtype
from seed_jax.convert.merging import cast_params
from seed_jax.convert.parity import Check, ParityReport, make_report
from seed_jax.convert.tensors import TensorDict
from seed_jax.models.diffusion import StableDiffusion, StableDiffusionConfig, Unclip, UnclipCondition, UnclipConfig

LATENT_SIDE = 16  # small, so that the comparison takes seconds; every weight is used
TIMESTEP = 501
# Relative to the largest value. Float32 sums in another order change the UNet's output by 5e-6, a tanh GELU by 1e-4.
_LIMIT = 5e-5


def import_report(
    source: str | Path, out: str | Path, *, variant: str | None = None, forward: bool = True
) -> ParityReport:
    """Compare a model directory with the diffusers folder or single file that it was imported from.

    Args:
        source: the folder or file.
        out: the model directory.
        variant: of the folder's weight files that were used.
        forward: also compare the outputs of the networks.
    """
    name, params = _open_model(out)
    facts = {"from": str(source), "to": str(out), "variant": str(variant)}
    return parity_report(
        f"Import of {name}", source, params, importing=True, forward=forward, variant=variant, facts=facts
    )


def export_report(model: str | Path, out: str | Path, *, forward: bool = True) -> ParityReport:
    """Compare an exported diffusers folder with the model directory or workdir that it was made from."""
    name, params = _open_model(model)
    facts = {"from": str(model), "to": str(out)}
    return parity_report(f"Export of {name}", out, params, importing=False, forward=forward, facts=facts)


def _open_model(directory: str | Path) -> tuple[str, Mapping[str, Any]]:
    """Return the description of a decoder's kind, and the parameters to draw with."""
    loaded = model_dir.open_lazily(directory, kinds.DECODERS)
    return kinds.ModelKind(loaded.kind).description, model_dir.decoder_params(loaded.params)


def parity_report(
    title: str,
    folder: str | Path,
    params: Mapping[str, Any],
    *,
    importing: bool,
    forward: bool = True,
    variant: str | None = None,
    facts: Mapping[str, str],
) -> ParityReport:
    """Compare a diffusers folder, or a single file of Stable Diffusion, with our parameters.

    Args:
        title, facts: of the report.
        folder: the folder or file.
        params: part -> tree of arrays or lazy arrays.
        importing: whether the folder is the source of the conversion.
        forward: also compare the outputs of the networks; needs PyTorch, and a folder.
        variant: of the folder's weight files that were used.
    """
    decoder = _open(Path(folder), variant)
    ours = to_diffusers_tensors(params, "the model directory")
    before, after = (decoder.files, ours) if importing else (ours, decoder.files)
    pairs = [
        (before[part].with_prefix(f"{name}."), after[part].with_prefix(f"{name}."))
        for part, (name, _) in WEIGHT_FOLDERS.items()
        if part in ours
    ]

    def run() -> tuple[Check, ...]:
        return forward_checks(Path(folder), decoder.config, params, after, variant=variant)

    return make_report(
        title,
        facts,
        pairs,
        run if forward and Path(folder).is_dir() else None,
        needs=["torch", "diffusers", "transformers"],
        what="forward passes",
    )


def _open(path: Path, variant: str | None) -> ImportedUnclip | ImportedStableDiffusion:
    if path.is_file():
        return open_checkpoint(path)
    if (path / WEIGHT_FOLDERS["normalizer"][0]).is_dir():
        return open_unclip(path, variant=variant)
    return open_stable_diffusion(path, variant=variant)


def forward_checks(
    folder: Path,
    config: UnclipConfig | StableDiffusionConfig,
    params: Mapping[str, Any],
    after: Mapping[str, TensorDict],
    *,
    variant: str | None = None,
) -> tuple[Check, ...]:
    """Compare one float32 forward pass of UNet, autoencoder and text encoder.

    Args:
        params: part -> tree of arrays or lazy arrays.
        after: the tensors after the conversion; the weights of both sides are rounded to their dtypes first.
    """
    x = _random_inputs(config)
    decoder: Unclip | StableDiffusion
    condition: Any = x["text_states"]
    if isinstance(config, UnclipConfig):
        decoder, condition = Unclip(config), UnclipCondition(x["text_states"], x["class_labels"])
    else:
        decoder = StableDiffusion(config)
    runs: dict[str, tuple[Callable, Callable]] = {
        "unet": (_torch_unet, lambda p: decoder.denoise(p, x["latents"], jnp.array([TIMESTEP]), condition)),
        "vae": (_torch_vae, lambda p: decoder.vae.decode(p["vae"], x["latents"])),
        "text": (_torch_text, lambda p: decoder.encode_text(p, x["tokens"])),
    }
    checks = []
    for part, (run_torch, compute) in runs.items():
        stored = promoted_dtype(tensor.dtype for tensor in after[part].values())
        expected = run_torch(_TorchNetwork(folder / WEIGHT_FOLDERS[part][0], stored, variant), x)
        weights = load_on_device(cast_params(cast_params(params[part], stored), np.dtype(np.float32)))
        output = np.asarray(jax.jit(compute)({part: weights}))
        difference = float(np.abs(output - expected).max() / np.abs(expected).max())
        meaning = "greatest difference from PyTorch's output, relative to its largest value"
        checks.append(Check(WEIGHT_FOLDERS[part][0], difference, _LIMIT, meaning))
    return tuple(checks)


def _random_inputs(config: UnclipConfig | StableDiffusionConfig) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    length = config.text.max_length

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((1, *shape)), jnp.float32)

    labels = {"class_labels": normal(config.class_width)} if isinstance(config, UnclipConfig) else {}
    return {
        **labels,
        "latents": normal(LATENT_SIDE, LATENT_SIDE, config.unet.in_channels),
        "text_states": normal(length, config.unet.text_width),
        "tokens": jnp.asarray(rng.integers(0, config.text.vocab_size, (1, length)), jnp.int32),
    }


class _TorchNetwork:
    """A PyTorch network from a subfolder, its weights rounded to a dtype."""

    def __init__(self, folder: Path, stored: np.dtype, variant: str | None):
        self._folder, self._stored = folder, stored
        self._variant = variant if variant and any(folder.glob(f"*.{variant}*")) else None

    def run(self, cls: Any, call: Callable) -> np.ndarray:
        """Load the network of class `cls` and return `call(network, to_torch)` as NumPy."""
        import torch

        network = cls.from_pretrained(self._folder, variant=self._variant, torch_dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(parameter.to(getattr(torch, str(self._stored))))
            return call(network, lambda value: torch.from_numpy(np.array(value))).numpy()


def _torch_unet(network: _TorchNetwork, x: Mapping[str, jax.Array]) -> np.ndarray:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    def call(model: Any, tensor: Callable) -> Any:
        latents = tensor(x["latents"].transpose(0, 3, 1, 2))
        labels = tensor(x["class_labels"]) if "class_labels" in x else None
        return model(latents, TIMESTEP, tensor(x["text_states"]), class_labels=labels).sample.permute(0, 2, 3, 1)

    return network.run(UNet2DConditionModel, call)


def _torch_vae(network: _TorchNetwork, x: Mapping[str, jax.Array]) -> np.ndarray:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    def call(model: Any, tensor: Callable) -> Any:
        return model.decode(tensor(x["latents"].transpose(0, 3, 1, 2))).sample.permute(0, 2, 3, 1)

    return network.run(AutoencoderKL, call)


def _torch_text(network: _TorchNetwork, x: Mapping[str, jax.Array]) -> np.ndarray:
    from transformers import CLIPTextModel

    return network.run(CLIPTextModel, lambda model, tensor: model(tensor(x["tokens"]).long()).last_hidden_state)
