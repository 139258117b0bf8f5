"""The SEED image tokenizers: image -> 32 codes -> generation embedding (SEED-2: spec A; SEED-1: spec G)."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.models.abstract import traced_once
from seed_jax.models.nn.layers import Dense, LayerNorm, Mlp, param
from seed_jax.models.tokenizer import vq
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.qformer import QFormer
from seed_jax.models.tokenizer.text_branch import TextBranch
from seed_jax.models.tokenizer.vit import Blocks, Vit
from seed_jax.precision import Precision
from seed_jax.typing import Tree


@flax.struct.dataclass
class EncoderOutput:
    """Causal embeddings of images and their codes."""

    embeddings: Float[Array, "B Q D"]  # causal embeddings: the Q-Former's output
    prequant: Float[Array, "B Q C"]  # the projected embeddings that are quantized
    quantized: vq.QuantizerOutput

    @property
    def codes(self) -> Int[Array, "B Q"]:
        """Codes of the images."""
        return self.quantized.codes


@flax.struct.dataclass
class TokenizerOutput:
    """The encoder's output, and what both decoders predict from it."""

    encoded: EncoderOutput
    reconstruction: Float[Array, "B Q D"] | None  # of the causal embeddings
    generation_embedding: Float[Array, "B ..."]


class SeedTokenizer(nn.Module):
    """Encode images as codes with causal dependency, and decode codes to the condition of the diffusion decoder.

    Example:
        model = SeedTokenizer(SeedTokenizerConfig.full())
        codes = model.apply({"params": params}, images, method="encode").codes  # images normalized, [B, 224, 224, 3]
        embeddings = model.apply({"params": params}, codes, method="embed_codes")

    Attributes:
        config: sizes.
        precision: dtypes; what the codes are chosen from is float32 in any case.
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
        # In float32, since rounding a near tie to 16 bits would change a code.
        self.encode_task = Mlp(width, config.code_width, jnp.tanh, Precision())
        codebook_shape = (config.num_codes, config.code_width)
        self.codebook = param(self, "codebook", _codebook_init, codebook_shape, (None, None), jnp.dtype(jnp.float32))
        self.decode_task = Mlp(config.code_width, width, jnp.tanh, precision)
        normal, shape, axes = nn.initializers.normal(0.02), (config.qformer.num_queries, width), (None, "embed")
        if config.reconstruction:
            self.recon_pos_embed = param(self, "recon_pos_embed", normal, shape, axes, precision.param_dtype)
            self.recon_blocks = Blocks(config.decoder, precision, remat)
        if config.predicts_text:
            self.text_decoder = TextBranch(config.text_decoder, precision, remat)
            return
        self.image_pos_embed = param(self, "image_pos_embed", normal, shape, axes, precision.param_dtype)
        self.image_blocks = Blocks(config.decoder, precision, remat)
        if config.head == "mlp":
            self.image_down = [
                Dense(n, ("embed", None), use_bias=False, precision=precision) for n in config.image_down
            ]
        else:
            assert config.reverse is not None  # checked by the config
            self.reverse_qformer = QFormer(config.reverse, precision, remat)
        self.image_proj = Dense(config.embedding_width, ("embed", None), precision=precision)

    def __call__(self, image: Float[Array, "B H W 3"], *, deterministic: bool = True) -> TokenizerOutput:
        """Encode and decode, using every parameter: for `init` and for training the codebook.

        Args:
            image: normalized images (`seed_jax.images`).
            deterministic: no dropout; otherwise the rng `dropout` is needed.
        """
        encoded = self.encode(image, deterministic=deterministic)
        up = self.decode_task(encoded.quantized.vectors)
        reconstruction = self.reconstruct(up) if self.config.reconstruction else None
        return TokenizerOutput(encoded, reconstruction, self.project(up, deterministic=deterministic))

    def features(self, image: Float[Array, "B H W 3"]) -> Float[Array, "B N V"]:
        """Return the normalized ViT features, class token first: the memory of the Q-Former."""
        return self.ln_vision(self.vit(image))

    def encode(self, image: Float[Array, "B H W 3"], *, deterministic: bool = True) -> EncoderOutput:
        """Encode normalized images (`seed_jax.images`) as codes."""
        embeddings = self.qformer.encode_image(self.features(image), deterministic=deterministic)
        prequant = self.encode_task(embeddings)
        return EncoderOutput(embeddings, prequant, vq.quantize(prequant, self.codebook))

    def embed_codes(self, codes: Int[Array, "B Q"]) -> Float[Array, "B ..."]:
        """Return the generation embedding of `config.embedding_shape`.

        It predicts CLIP ViT-H's image embedding, not normalized; SEED-1's predicts CLIP ViT-L's text states.
        """
        return self.project(self.decode_codes(codes))

    def reconstruct_codes(self, codes: Int[Array, "B Q"]) -> Float[Array, "B Q D"]:
        """Return the causal embeddings predicted from codes (retrieval on codes)."""
        return self.reconstruct(self.decode_codes(codes))

    def decode_codes(self, codes: Int[Array, "B Q"]) -> Float[Array, "B Q D"]:
        """Project the codes' vectors to the width of the decoders."""
        return self.decode_task(vq.lookup(codes, self.codebook))

    def reconstruct(self, up: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """Predict the causal embeddings from the decoded codes.

        Raises:
            UserError: the tokenizer has no weights for it (`config.reconstruction`).
        """
        if not self.config.reconstruction:
            raise UserError(
                "This image tokenizer does not reconstruct causal embeddings: its weights lack the blocks for it, as "
                "SEED-1's do; take one that has them for retrieval on codes."
            )
        return self.recon_blocks(up + self.recon_pos_embed.astype(up.dtype)[None])

    def project(self, up: Float[Array, "B Q D"], *, deterministic: bool = True) -> Float[Array, "B ..."]:
        """Predict the generation embedding from the decoded codes."""
        if self.config.predicts_text:
            return self.text_decoder(up, deterministic=deterministic)
        x = self.image_blocks(up + self.image_pos_embed.astype(up.dtype)[None])
        if self.config.head == "reverse_qformer":
            return self.image_proj(self.reverse_qformer.encode_image(x, deterministic=deterministic)[:, 0])
        for index, layer in enumerate(self.image_down):
            x = layer(jax.nn.relu(x) if index else x)
        self.sow("intermediates", "image_down", x)
        return self.image_proj(x.reshape(len(x), -1))  # query-major, as in the original


def _codebook_init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


@traced_once
def abstract_params(config: SeedTokenizerConfig) -> Tree:
    """Return the tokenizer's abstract parameters, without logical axis names."""
    image = jnp.zeros((1, config.image_size, config.image_size, 3))
    return sharding.unbox(jax.eval_shape(lambda: SeedTokenizer(config).init(jax.random.key(0), image)))["params"]
