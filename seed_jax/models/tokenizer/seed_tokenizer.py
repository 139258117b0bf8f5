"""The SEED image tokenizer: picture -> 32 codes -> generation embedding (SEED-2, spec A)."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array, Float, Int

from seed_jax.models.nn.layers import Dense, LayerNorm, Mlp
from seed_jax.models.tokenizer import vq
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.qformer import QFormer
from seed_jax.models.tokenizer.vit import Blocks, Vit
from seed_jax.precision import Precision


@flax.struct.dataclass
class Encoded:
    """What the way from picture to codes leaves behind."""

    embeddings: Float[Array, "B Q D"]  # causal embeddings: the Q-Former's output
    prequant: Float[Array, "B Q C"]  # what is quantised
    quantized: vq.Quantized

    @property
    def codes(self) -> Int[Array, "B Q"]:
        return self.quantized.codes


@flax.struct.dataclass
class Decoded:
    """Everything the codes are turned into."""

    encoded: Encoded
    reconstruction: Float[Array, "B Q D"]  # of the causal embeddings
    generation_embedding: Float[Array, "B E"]


class SeedTokenizer(nn.Module):
    """Encode pictures as codes of a causal meaning, and codes as the image embedding that a decoder draws from.

    Args:
        remat: recompute activations in the backward pass.
    """

    config: SeedTokenizerConfig
    precision: Precision = Precision()
    remat: bool = False

    def setup(self):
        config, precision, remat = self.config, self.precision, self.remat
        width = config.qformer.width
        self.vit = Vit(config.vit, precision, remat)
        self.ln_vision = LayerNorm(config.ln_vision_epsilon, precision)
        self.qformer = QFormer(config.qformer, precision, remat)
        # What the codes are chosen from is never rounded to 16 bits: a near tie would change a code.
        exact = Precision()
        self.encode_task = Mlp(width, config.code_width, jnp.tanh, exact)
        self.codebook = self.param("codebook", _codebook_init(), (config.num_codes, config.code_width), jnp.float32)
        self.decode_task = Mlp(config.code_width, width, jnp.tanh, precision)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        shape = (config.qformer.num_queries, width)
        self.recon_pos_embed = self.param("recon_pos_embed", init, shape, precision.param_dtype)
        self.recon_blocks = Blocks(config.decoder, precision, remat)
        self.image_pos_embed = self.param("image_pos_embed", init, shape, precision.param_dtype)
        self.image_blocks = Blocks(config.decoder, precision, remat)
        if config.head == "mlp":
            self.image_down = [
                Dense(n, ("embed", None), use_bias=False, precision=precision) for n in config.image_down
            ]
        else:
            self.reverse_qformer = QFormer(config.reverse, precision, remat)
        self.image_proj = Dense(config.embedding_width, ("embed", None), precision=precision)

    def __call__(self, image: Float[Array, "B H W 3"], *, deterministic: bool = True) -> Decoded:
        """Go the whole way, through every parameter: for `init` and for training the codebook."""
        encoded = self.encode(image, deterministic=deterministic)
        up = self.decode_task(encoded.quantized.vectors)
        return Decoded(encoded, self.reconstruct(up), self.project(up, deterministic=deterministic))

    def features(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B N V"]:
        """Return the normed ViT features, class token first: the memory of the Q-Former."""
        return self.ln_vision(self.vit(image))

    def encode(self, image: Float[Array, "B H W 3"], *, deterministic: bool = True) -> Encoded:
        """Turn normalised pictures (`seed_jax.images`) into codes."""
        embeddings = self.qformer(self.features(image), deterministic=deterministic).queries
        prequant = self.encode_task(embeddings)
        return Encoded(embeddings, prequant, vq.quantize(prequant, self.codebook))

    def embed_codes(self, codes: Int[Array, "B Q"]) -> Float[Array, "B E"]:
        """Return the generation embedding: an estimate of CLIP ViT-H's image embedding, not normalised."""
        return self.project(self.decode_codes(codes))

    def reconstruct_codes(self, codes: Int[Array, "B Q"]) -> Float[Array, "B Q D"]:
        """Estimate the causal embeddings that the codes stand for (retrieval on codes)."""
        return self.reconstruct(self.decode_codes(codes))

    def decode_codes(self, codes: Int[Array, "B Q"]) -> Float[Array, "B Q D"]:
        """Widen the codes' vectors to what both decoders begin with."""
        return self.decode_task(vq.lookup(codes, self.codebook))

    def reconstruct(self, up: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """Run the decoder that estimates the causal embeddings."""
        return self.recon_blocks(up + self.recon_pos_embed.astype(up.dtype)[None])

    def project(self, up: Float[Array, "B Q D"], *, deterministic: bool = True) -> Float[Array, "B E"]:
        """Run the decoder that estimates the image embedding."""
        x = self.image_blocks(up + self.image_pos_embed.astype(up.dtype)[None])
        if self.config.head == "reverse_qformer":
            return self.image_proj(self.reverse_qformer(x, deterministic=deterministic).queries[:, 0])
        for index, layer in enumerate(self.image_down):
            x = layer(jax.nn.relu(x) if index else x)
        self.sow("intermediates", "image_down", x)
        return self.image_proj(x.reshape(len(x), -1))  # query by query


def _codebook_init():
    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])

    return nn.with_logical_partitioning(init, (None, None))


def abstract_params(config: SeedTokenizerConfig) -> dict[str, Any]:
    """Return the tokenizer's parameters as shapes, a nested dict."""
    image = jnp.zeros((1, config.image_size, config.image_size, 3))
    return meta.unbox(jax.eval_shape(SeedTokenizer(config).init, jax.random.key(0), image))["params"]
