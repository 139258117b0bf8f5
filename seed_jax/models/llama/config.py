"""Sizes of a LLaMA (spec 0.2)."""

import dataclasses

from seed_jax.errors import UserError
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig


@dataclasses.dataclass(frozen=True)
class LlamaConfig(DecoderOnlyConfig):
    """Sizes of a LLaMA."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rms_norm_eps: float = 1e-6
    max_length: int = 2048
    rope_theta: float = 10000.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise UserError(f"A LLaMA's {field.name} must be positive: found {getattr(self, field.name)}.")
        if self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"A LLaMA's hidden_size must be num_heads times an even head size: found {self.hidden_size} and "
                f"{self.num_heads}."
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"A LLaMA's num_kv_heads must divide num_heads: found {self.num_kv_heads} and {self.num_heads}."
            )

    @classmethod
    def seed_8b(cls) -> "LlamaConfig":
        """Return the sizes of SEED-LLaMA-8B (Vicuna-7B v1.1 and 8194 image tokens)."""
        return cls(40194, 4096, 11008, 32, 32, 32, rms_norm_eps=1e-6)

    @classmethod
    def seed_14b(cls) -> "LlamaConfig":
        """Return the sizes of SEED-LLaMA-14B (LLaMA-2-Chat-13B and 8194 image tokens)."""
        return cls(40194, 5120, 13824, 40, 40, 40, rms_norm_eps=1e-5)

    @classmethod
    def tiny(cls, vocab_size: int) -> "LlamaConfig":
        """Return sizes that train on a laptop's CPU."""
        return cls(vocab_size, 128, 344, 2, 4, 4, max_length=512)
