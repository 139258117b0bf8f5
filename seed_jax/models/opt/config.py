"""Sizes of an OPT (arXiv 2205.01068), the language model of SEED-1."""

import dataclasses

from seed_jax.errors import UserError
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig


@dataclasses.dataclass(frozen=True)
class OptConfig(DecoderOnlyConfig):
    """Sizes of an OPT.

    Attributes:
        word_embed_size: width of the token embeddings, which OPT-350m projects to `hidden_size` and back.
        pre_norm: LayerNorm before each sublayer, or, in OPT-350m, after it.
        final_norm: LayerNorm after the last layer; always False without `pre_norm`.
        num_codes: with code vectors (SEED-OPT), how many; input id `vocab_size` + c stands for the vector of code c,
            projected to the width of the token embeddings. Such ids are never generated.
        code_width: width of the code vectors.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_length: int = 2048
    word_embed_size: int = 0
    pre_norm: bool = True
    final_norm: bool = True
    epsilon: float = 1e-5
    num_codes: int = dataclasses.field(default=0, metadata={"optional": True})
    code_width: int = dataclasses.field(default=0, metadata={"optional": True})

    def __post_init__(self):
        if not self.word_embed_size:
            object.__setattr__(self, "word_embed_size", self.hidden_size)
        for field in dataclasses.fields(self):
            value, of_codes = getattr(self, field.name), field.name in ("num_codes", "code_width")
            if field.type is not bool and (value < 0 or (value == 0 and not of_codes)):
                raise UserError(f"An OPT's {field.name} must be positive: found {value}.")
        if bool(self.num_codes) != bool(self.code_width):
            raise UserError(
                f"An OPT has code vectors of some width, or none: found num_codes {self.num_codes} and code_width "
                f"{self.code_width}."
            )
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"An OPT's hidden_size must be divisible by num_heads: found {self.hidden_size} and {self.num_heads}."
            )
        if self.final_norm and not self.pre_norm:
            raise UserError("An OPT with post-norm layers (350m) has no final norm: set final_norm to False.")

    @property
    def num_kv_heads(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of key-value heads: OPT does not group its heads."""
        return self.num_heads

    @property
    def num_input_tokens(self) -> int:
        return self.vocab_size + self.num_codes

    @property
    def embedding_size(self) -> int:
        return self.word_embed_size

    @classmethod
    def seed_2b7(cls) -> "OptConfig":
        """Return the sizes of SEED-OPT-2.7B: OPT-2.7B, 8194 image tokens and SEED-1's code vectors."""
        return cls(58466, 2560, 10240, 32, 32, num_codes=8192, code_width=32)

    @classmethod
    def tiny(cls, vocab_size: int) -> "OptConfig":
        """Return sizes that train on a laptop's CPU."""
        return cls(vocab_size, 128, 256, 2, 4, max_length=512)
