"""Sizes of the SEED image tokenizer."""

import dataclasses
from collections.abc import Mapping

from seed_jax.errors import UserError
from seed_jax.models import config_io
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.vit import BlockConfig, VitConfig

NAMED_SIZES = ("full", "small", "tiny")  # what a config may ask for: the classmethods below


@dataclasses.dataclass(frozen=True)
class SeedTokenizerConfig:
    """Sizes of the tokenizer; the defaults are the released SEED-2 tokenizer's.

    `head` says what makes the generation embedding: "mlp" (released weights; its widths are `image_down`) or
    "reverse_qformer" (the default of the original's training code; its sizes are `reverse`).
    """

    vit: VitConfig = VitConfig()
    qformer: QFormerConfig = QFormerConfig()
    num_codes: int = 8192
    code_width: int = 32
    decoder: BlockConfig = BlockConfig(width=768, depth=4, heads=12, mlp_width=3072, key_bias=True)
    head: str = "mlp"
    image_down: tuple[int, ...] = (256, 128, 32)
    reverse: QFormerConfig | None = None
    embedding_width: int = 1024  # of CLIP ViT-H/14's image embedding
    ln_vision_epsilon: float = 1e-5

    def __post_init__(self):
        needed = {"mlp": self.image_down, "reverse_qformer": self.reverse}
        if self.head not in needed:
            raise UserError(f"Unknown tokenizer head {self.head!r}: expected one of {', '.join(needed)}.")
        if not needed[self.head]:
            raise UserError(f"The tokenizer head {self.head!r} has no sizes: set image_down or reverse.")
        width = self.decoder.width
        joints = [("qformer", self.qformer, self.vit.blocks.width)]
        joints += [("reverse", self.reverse, width)] if self.reverse else []
        for name, qformer, memory_width in joints:
            if (qformer.width, qformer.memory_width) != (width, memory_width):
                raise UserError(
                    f"The tokenizer's {name}.width and {name}.memory_width are {qformer.width} and "
                    f"{qformer.memory_width}, but what they connect has {width} and {memory_width}."
                )

    @classmethod
    def full(cls, head: str = "mlp") -> "SeedTokenizerConfig":
        """Return the released sizes; a Reverse Q-Former gets the 4 layers of the original's training code."""
        return cls(**_head_sizes(head, (256, 128, 32), dataclasses.replace(QFormerConfig(), depth=4)))

    @classmethod
    def tiny(cls, head: str = "mlp") -> "SeedTokenizerConfig":
        """Return sizes that run in a moment on a laptop: 56 px pictures, 32 of 128 codes; heads are 16 wide."""
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
        """Return sizes that learn the drawn world on a laptop: 48 px pictures, 32 of 256 codes."""
        qformer = QFormerConfig(width=96, depth=2, heads=4, mlp_width=192, memory_width=96, max_positions=96)
        blocks = BlockConfig(width=96, depth=4, heads=4, mlp_width=384, epsilon=1e-5, key_bias=True)
        return cls(
            # A CLIP tower's trunk, so that one network can be both the encoder and the teacher.
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
        return self.vit.image_size

    @property
    def codes_per_image(self) -> int:
        return self.qformer.num_queries

    def to_dict(self) -> dict:
        return config_io.to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping, where: str = "config") -> "SeedTokenizerConfig":
        return config_io.from_dict(cls, data, where)


def _head_sizes(head: str, image_down: tuple[int, ...], qformer: QFormerConfig) -> dict:
    if head != "reverse_qformer":
        return {"head": head, "image_down": image_down}
    reverse = dataclasses.replace(qformer, num_queries=1, causal=False, memory_width=qformer.width)
    return {"head": head, "image_down": (), "reverse": reverse}
