"""Compare a diffusers folder with our parameters: tensors, and what PyTorch and we compute from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint.lazy import on_device
from seed_jax.convert.diffusion.diffusers_import import FOLDERS, as_files, open_unclip
from seed_jax.convert.key_table import widest
from seed_jax.convert.merging import converted
from seed_jax.convert.parity import Check, Report, make_report
from seed_jax.convert.tensors import Tensors
from seed_jax.models.diffusion import Condition, Unclip, UnclipConfig

LATENT_SIDE = 16  # small, so that the comparison takes seconds; it uses every weight all the same
TIMESTEP = 501
# Of the largest value. Float32 sums in another order move the UNet by about 5e-6 of it, a tanh GELU by 1e-4.
_LIMIT = 5e-5


def report(
    title: str,
    folder: str | Path,
    params: Mapping[str, Any],
    *,
    importing: bool,
    forward: bool = True,
    variant: str | None = None,
    facts: Mapping[str, str],
) -> Report:
    """Return the parity report of a conversion between a diffusers folder and our parameters.

    Args:
        params: of each part, arrays, lazy ones too.
        importing: whether the folder came first.
        forward: run the networks on both sides, one after the other; needs PyTorch.
        variant: the folder's weight files that were used.
    """
    found = open_unclip(folder, variant=variant)
    ours = as_files(params, "the model directory")
    order = (lambda theirs, ours: (theirs, ours)) if importing else (lambda theirs, ours: (ours, theirs))
    pairs = [
        order(*(side[part].with_prefix(f"{FOLDERS[part][0]}.") for side in (found.files, ours))) for part in FOLDERS
    ]
    after = ours if importing else found.files

    def run() -> tuple[Check, ...]:
        return forward_checks(Path(folder), found.config, params, after, variant=variant)

    return make_report(
        title,
        facts,
        pairs,
        run if forward else None,
        needs=["torch", "diffusers", "transformers"],
        what="forward passes",
    )


def forward_checks(
    folder: Path,
    config: UnclipConfig,
    params: Mapping[str, Any],
    after: Mapping[str, Tensors],
    *,
    variant: str | None = None,
) -> tuple[Check, ...]:
    """Compare one float32 forward pass of UNet, autoencoder and text encoder, whose weights are rounded as in `after`.

    Args:
        params: of each part, arrays, lazy ones too.
    """
    x = _inputs(config)
    unclip, condition = Unclip(config), Condition(x["text_states"], x["class_labels"])
    runs: dict[str, tuple[Callable, Callable]] = {
        "unet": (_torch_unet, lambda p: unclip.denoise(p, x["latents"], jnp.array([TIMESTEP]), condition)),
        "vae": (_torch_vae, lambda p: unclip.vae.decode(p["vae"], x["latents"])),
        "text": (_torch_text, lambda p: unclip.text_states(p, x["tokens"])),
    }
    checks = []
    for part, (theirs, compute) in runs.items():
        stored = widest(tensor.dtype for tensor in after[part].values())
        expected = theirs(_Loader(folder / FOLDERS[part][0], stored, variant), x)
        weights = on_device(converted(converted(params[part], stored), np.dtype(np.float32)))
        apart = np.abs(np.asarray(jax.jit(compute)({part: weights})) - expected).max() / np.abs(expected).max()
        meaning = "greatest difference from PyTorch's output, of its largest value"
        checks.append(Check(FOLDERS[part][0], float(apart), _LIMIT, meaning))
    return tuple(checks)


def _inputs(config: UnclipConfig) -> dict[str, jax.Array]:
    rng, length = np.random.default_rng(0), config.text.max_length

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((1, *shape)), jnp.float32)

    return {
        "latents": normal(LATENT_SIDE, LATENT_SIDE, config.unet.in_channels),
        "text_states": normal(length, config.unet.text_width),
        "class_labels": normal(config.unet.class_width),
        "tokens": jnp.asarray(rng.integers(0, config.text.vocab_size, (1, length)), jnp.int32),
    }


class _Loader:
    """Loads a PyTorch network, its weights rounded to a number format, and runs it on our inputs."""

    def __init__(self, folder: Path, stored: np.dtype, variant: str | None):
        self._folder, self._stored = folder, stored
        self._variant = variant if variant and any(folder.glob(f"*.{variant}*")) else None

    def run(self, cls: Any, call: Callable) -> np.ndarray:
        import torch

        network = cls.from_pretrained(self._folder, variant=self._variant, torch_dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(parameter.to(getattr(torch, str(self._stored))))
            return call(network, lambda value: torch.from_numpy(np.array(value))).numpy()


def _torch_unet(loader: _Loader, x: Mapping[str, jax.Array]) -> np.ndarray:
    from diffusers import UNet2DConditionModel

    def call(network, tensor):
        latents = tensor(x["latents"].transpose(0, 3, 1, 2))
        labels = tensor(x["class_labels"])
        return network(latents, TIMESTEP, tensor(x["text_states"]), class_labels=labels).sample.permute(0, 2, 3, 1)

    return loader.run(UNet2DConditionModel, call)


def _torch_vae(loader: _Loader, x: Mapping[str, jax.Array]) -> np.ndarray:
    from diffusers import AutoencoderKL

    def call(network, tensor):
        return network.decode(tensor(x["latents"].transpose(0, 3, 1, 2))).sample.permute(0, 2, 3, 1)

    return loader.run(AutoencoderKL, call)


def _torch_text(loader: _Loader, x: Mapping[str, jax.Array]) -> np.ndarray:
    from transformers import CLIPTextModel

    return loader.run(CLIPTextModel, lambda network, tensor: network(tensor(x["tokens"]).long()).last_hidden_state)
