"""Sizes of the SEED image tokenizers."""

import dataclasses

from seed_jax.errors import UserError
from seed_jax.models.config_io import SerializableConfig
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.models.tokenizer.vit import BlockConfig, VitConfig

# The text states of Stable Diffusion 1, CLIP ViT-L/14's: how many, and of which width.
TEXT_STATES, TEXT_WIDTH = 77, 768


@dataclasses.dataclass(frozen=True)
class SeedTokenizerConfig(SerializableConfig):
    """Sizes of the tokenizer; the defaults are the released SEED-2 tokenizer's.

    Attributes:
        head: module that predicts the generation embedding. CLIP's image embedding is predicted by "mlp" (released
            weights; its widths are `image_down`) or "reverse_qformer" (the default of the original's training code; its
            sizes are `reverse`). "text_features" is SEED-1: a Reverse Q-Former (`reverse`) with one query per state of
            Stable Diffusion 1's text encoder, whose states it predicts.
        reconstruction: has decoder blocks that predict the causal embeddings; SEED-1's released weights lack them.
    """

    vit: VitConfig = VitConfig()
    qformer: QFormerConfig = QFormerConfig()
    num_codes: int = 8192
    code_width: int = 32
    decoder: BlockConfig = BlockConfig(width=768, depth=4, heads=12, mlp_width=3072, key_bias=True)
    head: str = "mlp"
    image_down: tuple[int, ...] = (256, 128, 32)
    reverse: QFormerConfig | None = None
    embedding_width: int = 1024  # of CLIP ViT-H/14's image embedding, or of CLIP ViT-L/14's text states (768)
    ln_vision_epsilon: float = 1e-5
    reconstruction: bool = dataclasses.field(default=True, metadata={"optional": True})

    def __post_init__(self):
        head_sizes = {"mlp": self.image_down, "reverse_qformer": self.reverse, "text_features": self.reverse}
        if self.head not in head_sizes:
            raise UserError(f"Unknown tokenizer head {self.head!r}: expected one of {', '.join(head_sizes)}.")
        if not head_sizes[self.head]:
            raise UserError(f"The tokenizer head {self.head!r} has no sizes: set image_down or reverse.")
        width = self.decoder.width
        self._check_widths("qformer", self.qformer, width, self.vit.blocks.width)
        if self.reverse:
            self._check_widths("reverse", self.reverse, width, width)

    @staticmethod
    def _check_widths(name: str, qformer: QFormerConfig, width: int, memory_width: int) -> None:
        if (qformer.width, qformer.memory_width) != (width, memory_width):
            raise UserError(
                f"The tokenizer's {name}.width and {name}.memory_width are {qformer.width} and {qformer.memory_width}, "
                f"expected {width} (decoder.width) and {memory_width} (the width of its input)."
            )

    @classmethod
    def full(cls, head: str = "mlp") -> "SeedTokenizerConfig":
        """Return the released sizes; a Reverse Q-Former has 4 layers, as in the original's training code."""
        width = TEXT_WIDTH if head == "text_features" else 1024
        sizes = _head_sizes(head, (256, 128, 32), dataclasses.replace(QFormerConfig(), depth=4))
        return cls(embedding_width=width, **sizes)

    @classmethod
    def seed1(cls) -> "SeedTokenizerConfig":
        """Return the sizes of SEED-1 (arXiv 2307.08041)."""
        return dataclasses.replace(cls.full("text_features"), reconstruction=False)

    @classmethod
    def tiny(cls, head: str = "mlp") -> "SeedTokenizerConfig":
        """Return sizes that run in seconds on a laptop: 56 px images, 32 codes out of 128, head size 16."""
        qformer = QFormerConfig(width=64, depth=2, heads=4, mlp_width=128, memory_width=64, max_positions=64)
        return cls(
            vit=VitConfig(image_size=56, blocks=BlockConfig(width=64, depth=2, heads=4, mlp_width=128)),
            qformer=qformer,
            num_codes=128,
            code_width=8,
            decoder=BlockConfig(width=64, depth=2, heads=4, mlp_width=128, key_bias=True),
            embedding_width=32,
            **_head_sizes(head, (64, 32, 8), qformer),
        )

    @classmethod
    def small(cls, head: str = "mlp") -> "SeedTokenizerConfig":
        """Return sizes that learn the synthetic world on a laptop: 48 px images, 32 codes out of 256."""
        qformer = QFormerConfig(width=96, depth=2, heads=4, mlp_width=192, memory_width=96, max_positions=96)
        blocks = BlockConfig(width=96, depth=4, heads=4, mlp_width=384, epsilon=1e-5, key_bias=True)
        return cls(
            # The architecture of a CLIP tower, so that one network can be both the encoder and the teacher.
            vit=VitConfig(image_size=48, patch_size=8, blocks=blocks, patch_bias=False, pre_norm=True),
            qformer=qformer,
            num_codes=256,
            code_width=12,
            decoder=BlockConfig(width=96, depth=1, heads=4, mlp_width=192, key_bias=True),
            embedding_width=96,
            **_head_sizes(head, (64, 32, 16), qformer),
        )

    @property
    def image_size(self) -> int:
        """Side of the input image in pixels."""
        return self.vit.image_size

    @property
    def codes_per_image(self) -> int:
        """Number of codes of an image."""
        return self.qformer.num_queries

    @property
    def predicts_text(self) -> bool:
        """Whether generation embeddings are states of a text encoder (SEED-1) rather than one image embedding."""
        return self.head == "text_features"

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of an image's generation embedding: (E,), or (T, E) for T text states."""
        if self.predicts_text:
            assert self.reverse is not None  # checked by __post_init__
            return self.reverse.num_queries, self.embedding_width
        return (self.embedding_width,)

    @property
    def text_decoder(self) -> TextBranchConfig:
        """Sizes of the module that predicts text states; needs the head "text_features"."""
        assert self.reverse is not None
        return TextBranchConfig(self.codes_per_image, self.decoder, self.reverse, self.embedding_width)


def _head_sizes(head: str, image_down: tuple[int, ...], qformer: QFormerConfig) -> dict:
    """Return the fields of a head: MLP widths, or a Reverse Q-Former with the sizes of `qformer`."""
    num_queries = {"reverse_qformer": 1, "text_features": TEXT_STATES}.get(head)
    if num_queries is None:
        return {"head": head, "image_down": image_down}
    reverse = dataclasses.replace(qformer, num_queries=num_queries, causal=False, memory_width=qformer.width)
    return {"head": head, "image_down": (), "reverse": reverse}
