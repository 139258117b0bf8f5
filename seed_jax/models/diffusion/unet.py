"""The denoising UNet of unCLIP Stable Diffusion 2.1 (spec B.3)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from seed_jax.models.diffusion import flax_blocks
from seed_jax.models.diffusion.unclip_config import UNetConfig
from seed_jax.precision import Precision


@dataclasses.dataclass(frozen=True)
class UNet:
    """Predict what the checkpoint was trained to predict (velocity or noise) from a noisy latent.

    Functional like a Linen module: `init` makes parameters, `apply` runs on them. Parameters are named as diffusers'
    Flax UNet names them, but for `class_embedding`.

    Attributes:
        attention: implementation of `attend` for the large score matrices.
        remat: keep only the outputs of residual and transformer blocks for the backward pass.
    """

    config: UNetConfig
    precision: Precision = Precision()
    attention: str = "chunked"
    remat: bool = False

    def init(self, rng: Key[Array, ""]) -> dict:
        """Make random parameters with logical axis names."""
        c = self.config
        with self._corrected():
            shapes = jax.eval_shape(
                self._module().init,
                rng,
                jnp.zeros((1, c.in_channels, c.sample_size, c.sample_size)),
                jnp.zeros((1,), jnp.int32),
                jnp.zeros((1, 1, c.text_width)),
                _class_condition(jnp.zeros((1, c.class_width))),
            )["params"]
        shapes = dict(shapes)
        shapes["class_embedding"] = shapes.pop("add_embedding")
        return flax_blocks.initialise(shapes, rng, self.precision.param_dtype)

    def apply(
        self,
        params: dict,
        latents: Float[Array, "B h w C"],
        timesteps: Int[Array, " B"],
        text_states: Float[Array, "B T D"],
        class_labels: Float[Array, "B L"],
    ) -> Float[Array, "B h w C"]:
        """Return the prediction in float32."""
        run = self._apply
        if self.remat:
            keep = jax.checkpoint_policies.save_only_these_names(flax_blocks.BLOCK_OUTPUT)
            run = jax.checkpoint(run, policy=keep)
        return run(params, latents, timesteps, text_states, class_labels)

    def _apply(self, params, latents, timesteps, text_states, class_labels):
        params = dict(params)
        params["add_embedding"] = params.pop("class_embedding")
        with self._corrected():
            y = self._module().apply(
                {"params": params},
                latents.transpose(0, 3, 1, 2),  # diffusers' interface is channels first, its computation is not
                timesteps,
                text_states,
                _class_condition(class_labels),
            )
        return y.sample.transpose(0, 2, 3, 1).astype(jnp.float32)

    def _corrected(self):
        return flax_blocks.corrected(groups=self.config.norm_groups, precision=self.precision, attention=self.attention)

    def _module(self):
        c = self.config
        return flax_blocks.module("unet").FlaxUNet2DConditionModel(
            sample_size=c.sample_size,
            in_channels=c.in_channels,
            out_channels=c.out_channels,
            down_block_types=tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in c.cross_attention),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(c.cross_attention)
            ),
            block_out_channels=c.block_channels,
            layers_per_block=c.layers_per_block,
            attention_head_dim=c.num_heads,  # diffusers' name for the number of heads
            cross_attention_dim=c.text_width,
            use_linear_projection=c.linear_projection,
            transformer_layers_per_block=c.transformer_layers,
            addition_embed_type="text_time",
            addition_time_embed_dim=2,  # unused, see below
            projection_class_embeddings_input_dim=c.class_width,
            dtype=self.precision.compute_dtype,
        )


def _class_condition(class_labels: Float[Array, "B L"]) -> dict:
    """Pass the class labels through SDXL's `text_time` path.

    diffusers' Flax UNet has no `class_embed_type="projection"`, but with no time ids that path is the same two layers
    on the given vector.
    """
    return {"text_embeds": class_labels, "time_ids": jnp.zeros((class_labels.shape[0], 0))}
