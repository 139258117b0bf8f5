"""Codes of pixels, to compare SEED's with: k-means of patches, and a VQ-VAE, the first paper's low-level tokens.

Both give an image as many codes from as many as the image tokenizer does: one code for each patch of a grid of 4 x 8.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from seed_jax import sharding
from seed_jax.models.nn.layers import Dense, param
from seed_jax.models.tokenizer.vit import BlockConfig, Blocks
from seed_jax.models.tokenizer.vq import QuantizerOutput, quantize, squared_distances
from seed_jax.recipes.emoji.config import PixelCodesOptions
from seed_jax.train.config.tokenizer import CodebookConfig
from seed_jax.train.stages.codebook.revival import batch_statistics, init_stats, kmeans, update_codebook

ROWS, COLUMNS = 4, 8  # of the grid: 32 codes
_CODEBOOK = CodebookConfig(ema_decay=0.99, restart_after=20)
_DEPTH = 2  # blocks of the encoder and of the decoder
_COMMITMENT = 0.25
_LOG_EVERY = 200
_ENCODE_BATCH = 256

# Without names of axes: the functions take sets of images of different sizes.
Images = UInt8[np.ndarray, "_ _ _ 3"]
Codes = Int[np.ndarray, "_ _"]


def to_patches(pixels: UInt8[np.ndarray | Array, "N S S 3"]) -> Float[Array, "N Q P"]:
    """Cut images into the patches of the grid, with values from -1 to 1."""
    count, side = len(pixels), pixels.shape[1]
    grid = jnp.asarray(pixels, jnp.float32).reshape(count, ROWS, side // ROWS, COLUMNS, side // COLUMNS, 3)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(count, ROWS * COLUMNS, -1) / 127.5 - 1


def kmeans_codes(
    train: Images, images: dict[str, Images], num_codes: int, options: PixelCodesOptions
) -> dict[str, Codes]:
    """Return the nearest centroids of patches.

    Args:
        train: images whose patches are clustered.
        images: name -> images to encode.
        num_codes: number of centroids.
        options: how many patches to cluster.
    """
    rng = np.random.default_rng(0)
    patches = np.asarray(to_patches(train)).reshape(len(train) * ROWS * COLUMNS, -1)
    chosen = patches[rng.permutation(len(patches))[: options.vectors * num_codes]]
    cluster = jax.jit(kmeans, static_argnums=(1, 3))
    centroids = cluster(jnp.asarray(chosen), num_codes, jax.random.key(0), 20)
    encode = jax.jit(lambda pixels: squared_distances(to_patches(pixels), centroids).argmin(-1))
    return {name: _encode(encode, pixels) for name, pixels in images.items()}


class PixelVqVae(nn.Module):
    """A VQ-VAE of patches: transformer blocks before and after the quantizer, as many as the image tokenizer's ViT has.

    Attributes:
        blocks: sizes of the encoder, and of the decoder.
        num_codes: size of the codebook.
        code_width: width of its vectors.
        patch_values: numbers of a patch.
    """

    blocks: BlockConfig
    num_codes: int
    code_width: int
    patch_values: int

    def setup(self):
        width = self.blocks.width
        self.patch_in = Dense(width, (None, "embed"))
        self.encoder, self.decoder = Blocks(self.blocks), Blocks(self.blocks)
        self.code_in, self.code_out = Dense(self.code_width, ("embed", None)), Dense(width, (None, "embed"))
        self.patch_out = Dense(self.patch_values, ("embed", None))
        positions, normal = (ROWS * COLUMNS, width), nn.initializers.normal(0.02)
        self.encoder_positions = param(
            self, "encoder_positions", normal, positions, (None, "embed"), jnp.dtype("float32")
        )
        self.decoder_positions = param(
            self, "decoder_positions", normal, positions, (None, "embed"), jnp.dtype("float32")
        )
        codebook = (self.num_codes, self.code_width)
        self.codebook = param(
            self, "codebook", nn.initializers.normal(1.0), codebook, (None, None), jnp.dtype("float32")
        )

    def encode(self, patches: Float[Array, "B Q P"]) -> Float[Array, "B Q C"]:
        """Return the vectors to quantize."""
        return self.code_in(self.encoder(self.patch_in(patches) + self.encoder_positions[None]))

    def __call__(
        self, patches: Float[Array, "B Q P"]
    ) -> tuple[Float[Array, "B Q P"], Float[Array, "B Q C"], QuantizerOutput]:
        """Return reconstructed patches, the vectors before quantization, and the codes."""
        vectors = self.encode(patches)
        quantized = quantize(vectors, jax.lax.stop_gradient(self.codebook))
        states = self.decoder(self.code_out(quantized.vectors) + self.decoder_positions[None])
        return self.patch_out(states), vectors, quantized


@dataclasses.dataclass(frozen=True)
class VqVaeResult:
    """A trained VQ-VAE's codes.

    Attributes:
        codes: name -> codes of the images.
        loss: mean squared error of its last steps, pixels from -1 to 1.
        params: number of its parameters.
    """

    codes: dict[str, Codes]
    loss: float
    params: int


def vqvae_codes(
    batches: Iterator[dict[str, np.ndarray]],
    images: dict[str, Images],
    sizes: tuple[BlockConfig, int, int],
    steps: int,
    options: PixelCodesOptions,
    seed: int,
) -> VqVaeResult:
    """Train a VQ-VAE and return the codes of images.

    Args:
        batches: training batches with `image`.
        images: name -> images to encode.
        sizes: blocks of the image tokenizer's ViT, number of its codes and width of their vectors.
        steps: to train.
        options: learning rate.
        seed: of the weights.
    """
    blocks, num_codes, code_width = sizes
    first = next(batches)
    patches = to_patches(first["image"])
    model = PixelVqVae(dataclasses.replace(blocks, depth=_DEPTH), num_codes, code_width, patches.shape[-1])
    params = sharding.unbox(jax.jit(model.init)(jax.random.key(seed), patches)["params"])
    schedule = optax.warmup_cosine_decay_schedule(0.0, options.peak_lr, max(1, steps // 20), steps)
    tx = optax.adamw(schedule, weight_decay=0.05)
    state = (params, tx.init(params), init_stats(params["codebook"], _CODEBOOK))
    step = jax.jit(functools.partial(_train_step, model, tx))
    losses: list[float] = []
    for number in range(steps):
        pixels = first["image"] if number == 0 else next(batches)["image"]
        state, loss = step(state, pixels, jax.random.key(number))
        if (number + 1) % _LOG_EVERY == 0 or number + 1 == steps:
            losses.append(float(loss))
            logging.info("VQ-VAE step %d/%d: loss %.4f", number + 1, steps, losses[-1])
    trained = state[0]

    @jax.jit
    def encode(pixels: Array) -> Array:
        vectors: Any = model.apply({"params": trained}, to_patches(pixels), method="encode")
        return squared_distances(vectors, trained["codebook"]).argmin(-1)

    codes = {name: _encode(encode, pixels) for name, pixels in images.items()}
    return VqVaeResult(codes, losses[-1], sum(leaf.size for leaf in jax.tree.leaves(trained)))


def _train_step(
    model: PixelVqVae, tx: optax.GradientTransformation, state: Any, pixels: Array, key: Key[Array, ""]
) -> Any:
    params, moments, stats = state

    def loss_of(params: Any) -> Any:
        patches = to_patches(pixels)
        reconstructed, vectors, quantized = model.apply({"params": params}, patches)  # pyright: ignore
        error = jnp.square(reconstructed - patches).mean()
        return error + _COMMITMENT * quantized.loss.mean(), (error, vectors, quantized.codes)

    (_, (error, vectors, codes)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, moments = tx.update(gradients, moments, params)
    params: Any = optax.apply_updates(params, updates)
    statistics = batch_statistics(vectors, codes, model.num_codes, _CODEBOOK, key)
    codebook, stats = update_codebook(_CODEBOOK, stats, params["codebook"], statistics)
    return ({**params, "codebook": codebook}, moments, stats), error


def _encode(encode: Callable[[Images], Any], pixels: Images) -> Codes:
    return apply_in_batches(encode, pixels, _ENCODE_BATCH).astype(np.int32)


def apply_in_batches(program: Callable[[Images], Any], pixels: Images, batch_size: int) -> np.ndarray:
    """Return the results of a program on batches of one size; the last batch is padded."""
    parts = []
    for start in range(0, len(pixels), batch_size):
        batch = pixels[start : start + batch_size]
        padded = np.concatenate([batch, np.zeros((batch_size - len(batch), *batch.shape[1:]), np.uint8)])
        parts.append(np.asarray(program(padded))[: len(batch)])
    return np.concatenate(parts)
