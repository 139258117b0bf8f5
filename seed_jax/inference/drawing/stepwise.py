"""A batch of images that is drawn a few sampler steps at a time.

`Drawer.draw` runs all steps in one program. Here the device is free between the steps: for the decode chunks of a
language model, for progress, or to give up. The images are the same up to float rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from seed_jax import sharding
from seed_jax.inference.drawing.batch import DrawBatch, conditions
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.models.diffusion import SamplerSteps, StableDiffusion, Unclip
from seed_jax.models.diffusion.samplers import SamplerState, guided, sampler_step
from seed_jax.typing import Tree

_STEPS_MULTIPLE = 32  # tables of steps are padded to a multiple, so that one program serves all usual numbers


class StepwisePrograms:
    """The jitted functions of stepwise drawing, each of which draws its shard of the batch without communication.

    Args:
        decoder: unCLIP or Stable Diffusion.
        mesh: its data axes shard the batch; the parameters are replicated.
    """

    def __init__(self, decoder: Unclip | StableDiffusion, mesh: Mesh):
        self._decoder = decoder
        replicated, sharded = PartitionSpec(), PartitionSpec(sharding.BATCH_AXES)
        state = SamplerState(sharded, sharded, PartitionSpec(None, sharding.BATCH_AXES))
        options = {"mesh": mesh, "check_vma": False}
        self.prepare = jax.jit(
            jax.shard_map(
                self._prepare,
                in_specs=(replicated, sharded, replicated),
                out_specs=(state, sharded, sharded),
                **options,
            )
        )
        self.decode = jax.jit(self._decode_sharded(options, replicated, sharded), static_argnames="tile")

        def advance(
            params: Tree,
            state: SamplerState,
            condition: Any,
            negative: Any,
            steps: Any,
            scale: Any,
            *,
            use_guidance: bool,
        ) -> SamplerState:
            inner = jax.shard_map(
                lambda *arguments: self._advance(*arguments, use_guidance=use_guidance),
                in_specs=(replicated, state_specs, sharded, sharded, replicated, replicated),
                out_specs=state_specs,
                **options,
            )
            return inner(params, state, condition, negative, steps, scale)

        state_specs = state
        self.advance = jax.jit(advance, static_argnames="use_guidance", donate_argnums=1)

    def _prepare(self, params: Tree, batch: DrawBatch, noise_level: Int[Array, ""]) -> tuple[SamplerState, Any, Any]:
        return SamplerState.start(batch.latents), *conditions(self._decoder, params, batch, noise_level)

    def _advance(
        self,
        params: Tree,
        state: SamplerState,
        condition: Any,
        negative: Any,
        steps: tuple[SamplerSteps, Int[Array, ""], Int[Array, ""]],
        guidance_scale: Float[Array, ""],
        *,
        use_guidance: bool,
    ) -> SamplerState:
        table, first, end = steps

        def denoise(latents: Array, timesteps: Array, condition: Any) -> Array:
            return self._decoder.denoise(params, latents, timesteps, condition)

        model = guided(denoise, condition, negative if use_guidance else None, guidance_scale)

        def body(index: Int[Array, ""], state: SamplerState) -> SamplerState:
            return sampler_step(model, state, jax.tree.map(lambda column: column[index], table))

        return jax.lax.fori_loop(first, end, body, state)

    def _decode_sharded(self, options: dict[str, Any], replicated: PartitionSpec, sharded: PartitionSpec) -> Any:
        def decode(params: Tree, latents: Array, *, tile: int | None) -> Array:
            def decode_shard(params: Tree, latents: Array) -> Array:
                pixels = self._decoder.decode_latents(params, latents, tile=tile)
                return jnp.round(pixels * 255).astype(jnp.uint8)

            return jax.shard_map(decode_shard, in_specs=(replicated, sharded), out_specs=sharded, **options)(
                params, latents
            )

        return decode


class StepwiseDrawing:
    """A batch in the making.

    Example:
        drawing = drawer.begin(embeddings, seeds)
        while drawing.completed_steps < drawing.num_steps:
            drawing.advance(2)  # other programs may run between two calls
        pixels = drawing.finish()
    """

    def __init__(
        self,
        programs: StepwisePrograms,
        params: Tree,
        batch: DrawBatch,
        steps: SamplerSteps,
        options: DrawOptions,
        num_images: int,
    ):
        self.num_steps = len(steps)
        self.completed_steps = 0
        self._programs = programs
        self._params = params
        self._options = options
        self._num_images = num_images
        padding = -self.num_steps % _STEPS_MULTIPLE
        self._steps = jax.tree.map(lambda column: np.pad(column, [(0, padding)] + [(0, 0)] * (column.ndim - 1)), steps)
        self._state, self._condition, self._negative = programs.prepare(params, batch, jnp.int32(options.noise_level))

    def advance(self, steps: int) -> int:
        """Run up to `steps` evaluations of the model, wait for them, and return how many are completed in all."""
        end = min(self.completed_steps + steps, self.num_steps)
        assert self._options.guidance_scale is not None  # resolved
        self._state = self._programs.advance(
            self._params,
            self._state,
            self._condition,
            self._negative,
            (self._steps, jnp.int32(self.completed_steps), jnp.int32(end)),
            jnp.float32(self._options.guidance_scale),
            use_guidance=self._options.guidance_scale > 1,
        )
        jax.block_until_ready(self._state)
        self.completed_steps = end
        return end

    def finish(self) -> UInt8[np.ndarray, "B H W 3"]:
        """Run the remaining steps and return the RGB images."""
        if self.completed_steps < self.num_steps:
            self.advance(self.num_steps)
        drawn = self._programs.decode(self._params, self._state.sample, tile=self._options.tile)
        return np.asarray(drawn)[: self._num_images]
