"""Options of the emoji recipe, and of its first stage."""

import dataclasses
from typing import Any

from seed_jax.train.config.common import Problems
from seed_jax.train.config.schema import Section, negative, not_positive
from seed_jax.train.config.tokenizer import QFormerStageConfig

STAGE = "emoji_recipe"  # `config.stage` of the recipe


@dataclasses.dataclass(frozen=True)
class PackagesOptions(Section):
    """The images.

    Attributes:
        directory: holds one unpacked npm package `emoji-datasource-STUDIO` per studio, whatever its folders are called.
        train: studios whose images are trained on; images are to be redrawn in the style of the last one.
        test: studio whose images no training sees.
        copies: randomly cropped copies of each image, in addition to itself, that the language model trains on.
        pieces: size of the language model's vocabulary of text.
        words: size of the Q-Former's vocabulary.
    """

    directory: str = ""
    train: tuple[str, ...] = ("apple", "facebook", "google")
    test: str = "twitter"
    copies: int = 3
    pieces: int = 1024
    words: int = 2400

    def problems(self) -> Problems:
        if not self.directory:
            yield "directory", "is empty: name the folder of the unpacked npm packages, see benchmarks/emoji.md"
        if not all((*self.train, self.test)):
            yield "train" if self.test else "test", "has an empty name, expected studios such as apple"
        elif not self.train or len(set(self.train)) < len(self.train):
            yield "train", f"is {', '.join(self.train) or 'empty'}, expected different studios"
        if self.test in self.train:
            yield "test", f"is {self.test}, which is trained on, too: remove it from packages.train"
        yield from not_positive(self, "pieces", "words")
        yield from negative(self, "copies")


@dataclasses.dataclass(frozen=True)
class PixelCodesOptions(Section):
    """The codes of pixels that SEED's are compared with: k-means of patches, and a VQ-VAE.

    Attributes:
        steps: of the VQ-VAE; 0 takes as many as let it see as many images as both stages of the image tokenizer.
        batch_size: of the VQ-VAE.
        peak_lr: of the VQ-VAE.
        vectors: patches per code that k-means clusters.
    """

    steps: int = 0
    batch_size: int = 64
    peak_lr: float = 1e-3
    vectors: int = 64

    def problems(self) -> Problems:
        yield from not_positive(self, "batch_size", "peak_lr", "vectors")
        yield from negative(self, "steps")


@dataclasses.dataclass(frozen=True)
class MeasureOptions(Section):
    """Number of samples to measure.

    Attributes:
        names: images to name, of each group; 0 takes all.
        drawings: names to draw, of each group.
        batch: batch size.
    """

    names: int = 0
    drawings: int = 300
    batch: int = 50

    def problems(self) -> Problems:
        yield from not_positive(self, "drawings", "batch")
        yield from negative(self, "names")


@dataclasses.dataclass(frozen=True)
class EmojiConfig(Section):
    """Options of the recipe.

    Attributes:
        stage: "emoji_recipe".
        seed: of the data and of every stage.
        packages: the images.
        pixel_codes: what the codes are compared with.
        evaluate: number of samples to measure.
        stages: name -> options of an ordinary stage.
    """

    stage: str = STAGE
    seed: int = 42
    packages: PackagesOptions = PackagesOptions()
    pixel_codes: PixelCodesOptions = PixelCodesOptions()
    evaluate: MeasureOptions = MeasureOptions()
    stages: dict[str, Any] = dataclasses.field(default_factory=dict)

    def problems(self) -> Problems:
        yield from negative(self, "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTextConfig(QFormerStageConfig):
    """Options of the stage `image_text`: those of stage I."""

    stage: str = "image_text"

    def problems(self) -> Problems:
        yield from super().problems()
        if self.init_from.model or self.init_from.files():
            yield "init_from", "names weights, but this stage trains from scratch: take stage qformer"
