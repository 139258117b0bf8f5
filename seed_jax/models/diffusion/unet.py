"""The denoising UNet of Stable Diffusion 1, 2 and unCLIP (spec B.3)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.errors import UserError
from seed_jax.models.abstract import traced_once
from seed_jax.models.diffusion import flax_blocks
from seed_jax.precision import Precision
from seed_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet; tuples run from the highest resolution to the lowest.

    The defaults are stable-diffusion-2-1-unclip's.

    Attributes:
        sample_size: side of the latent.
        cross_attention: which resolutions attend to the text.
        num_heads: attention heads per resolution.
        text_width: width of the text states.
        class_width: width of the class labels, in unCLIP a noised image embedding and the embedding of its noise level;
            None: no class labels (Stable Diffusion 1).
        upcast_attention: kept for export; the scores are float32 in any case.
    """

    sample_size: int = 96
    in_channels: int = 4
    out_channels: int = 4
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention: tuple[bool, ...] = (True, True, True, False)
    num_heads: tuple[int, ...] = (5, 10, 20, 20)
    layers_per_block: int = 2
    transformer_layers: int = 1
    text_width: int = 1024
    class_width: int | None = 2048
    norm_groups: int = 32
    linear_projection: bool = True
    upcast_attention: bool = False

    def __post_init__(self):
        levels = len(self.block_channels)
        if not levels:
            raise UserError("UNetConfig: block_channels is empty, expected the channels of each resolution.")
        for name in ("cross_attention", "num_heads"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"UNetConfig: {name} has {len(getattr(self, name))} entries, block_channels {levels}.")
        for channels, heads in zip(self.block_channels, self.num_heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise UserError(
                    f"UNetConfig: {channels} channels are not divisible by {heads} heads and {self.norm_groups} "
                    "norm groups."
                )


@dataclasses.dataclass(frozen=True)
class UNet:
    """Predict the noise or the velocity, whichever the checkpoint was trained for, from noisy latents.

    Functional like a Linen module: `init` creates parameters, `apply` uses them. Parameters are named as in diffusers'
    Flax UNet, except `class_embedding`.

    Attributes:
        attention: implementation of `attend` for the large score matrices.
        remat: save only the outputs of residual and transformer blocks for the backward pass.
    """

    config: UNetConfig
    precision: Precision = Precision()
    attention: str = "chunked"
    remat: bool = False

    def init(self, rng: Key[Array, ""]) -> Tree:
        """Create random parameters with logical axis names."""
        return flax_blocks.initialize(_shapes(self), rng, self.precision.param_dtype)

    def apply(
        self,
        params: Tree,
        latents: Float[Array, "B h w C"],
        timesteps: Int[Array, " B"],
        text_states: Float[Array, "B T D"],
        class_labels: Float[Array, "B L"] | None = None,
    ) -> Float[Array, "B h w C"]:
        """Return the prediction in float32.

        Args:
            params: from `init` or a checkpoint.
            latents: noisy latents.
            timesteps: training timestep of each latent.
            text_states: states of the text encoder.
            class_labels: as wide as the config's `class_width`; None if that is None.
        """
        run = self._apply
        if self.remat:
            policy = jax.checkpoint_policies.save_only_these_names(flax_blocks.BLOCK_OUTPUT)
            run = jax.checkpoint(run, policy=policy)
        return run(params, latents, timesteps, text_states, class_labels)

    def _apply(self, params, latents, timesteps, text_states, class_labels):
        params = dict(params)
        if class_labels is not None:
            params["add_embedding"] = params.pop("class_embedding")
        with self._corrected():
            y = self._module().apply(
                {"params": params},
                latents.transpose(0, 3, 1, 2),  # diffusers' interface is channels first, its computation channels last
                timesteps,
                text_states,
                _class_condition(class_labels),
            )
        return y.sample.transpose(0, 2, 3, 1).astype(jnp.float32)

    def _corrected(self):
        return flax_blocks.corrected(groups=self.config.norm_groups, precision=self.precision, attention=self.attention)

    def _module(self):
        config = self.config
        down_blocks = ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in config.cross_attention]
        up_blocks = ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(config.cross_attention)]
        class_options = {}
        if config.class_width is not None:
            class_options = {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 2,  # unused, see `_class_condition`
                "projection_class_embeddings_input_dim": config.class_width,
            }
        return flax_blocks.module("unet").FlaxUNet2DConditionModel(
            sample_size=config.sample_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=tuple(down_blocks),
            up_block_types=tuple(up_blocks),
            block_out_channels=config.block_channels,
            layers_per_block=config.layers_per_block,
            attention_head_dim=config.num_heads,  # diffusers' name for the number of heads
            cross_attention_dim=config.text_width,
            use_linear_projection=config.linear_projection,
            transformer_layers_per_block=config.transformer_layers,
            dtype=self.precision.compute_dtype,
            **class_options,
        )


@traced_once
def _shapes(unet: UNet) -> Tree:
    """Return the shapes of the parameters."""
    config = unet.config

    def init() -> Tree:
        return unet._module().init(
            jax.random.key(0),
            jnp.zeros((1, config.in_channels, config.sample_size, config.sample_size)),
            jnp.zeros((1,), jnp.int32),
            jnp.zeros((1, 1, config.text_width)),
            _class_condition(None if config.class_width is None else jnp.zeros((1, config.class_width))),
        )["params"]

    with unet._corrected():
        shapes = dict(jax.eval_shape(init))
    if config.class_width is not None:
        shapes["class_embedding"] = shapes.pop("add_embedding")
    return shapes


def _class_condition(class_labels: Float[Array, "B L"] | None) -> dict | None:
    """Pass the class labels through SDXL's `text_time` path.

    diffusers' Flax UNet has no `class_embed_type="projection"`, but with no time ids that path is the same two layers
    on the given vector.
    """
    if class_labels is None:
        return None
    return {"text_embeds": class_labels, "time_ids": jnp.zeros((class_labels.shape[0], 0))}
