"""Options of the quickstart: of the recipe, and of the stage that trains its teacher."""

import dataclasses
from typing import Any

from seed_jax.train.config.common import ImageDataConfig, Problems, TrainConfig
from seed_jax.train.config.schema import Section, negative, not_one_of, not_positive
from seed_jax.train.config.tokenizer import MODELS

STAGE = "recipe"  # `config.stage` of a recipe


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(Section):
    """What the ablations change about the image tokenizer.

    Attributes:
        codes_per_image: the language model writes 32; with fewer the recipe ends at the decoder.
        causal: whether code i depends on earlier codes only.
        contrastive: whether stage I, contrastive training, comes before stage II.
    """

    codes_per_image: int = 32
    causal: bool = True
    contrastive: bool = True

    def problems(self) -> Problems:
        yield from not_positive(self, "codes_per_image")


@dataclasses.dataclass(frozen=True)
class WorldOptions(Section):
    """Number of training samples of the synthetic world.

    Attributes:
        side: height and width of images in pixels.
        captions: captioned images for tokenizer and decoder, and as many for the language model.
        crowded: additional captioned images with three objects each, which few others have.
        questions: dialogues for the language model.
        edits: edits for the language model.
        differences: pairs of images with their difference for the language model.
        stories: sequences of images for the language model.
    """

    side: int = 48
    captions: int = 12_000
    crowded: int = 0
    questions: int = 6000
    edits: int = 6000
    differences: int = 1200
    stories: int = 600

    def problems(self) -> Problems:
        yield from not_positive(self, "side", "captions", "questions", "edits", "differences", "stories")
        yield from negative(self, "crowded")


@dataclasses.dataclass(frozen=True)
class MeasureOptions(Section):
    """Number of samples to measure.

    Attributes:
        samples: images to caption, and questions to answer.
        drawings: images to reconstruct, to generate and to edit.
        free: images to generate without the grammar.
        shown: examples of each task in the report.
        batch: batch size.
    """

    samples: int = 200
    drawings: int = 100
    free: int = 100
    shown: int = 12
    batch: int = 50

    def problems(self) -> Problems:
        yield from not_positive(self, "samples", "drawings", "free", "batch")


@dataclasses.dataclass(frozen=True)
class QuickstartConfig(Section):
    """Options of a recipe.

    Attributes:
        stage: "recipe".
        seed: of the data and of every stage.
        teacher: directory of pretrained networks (`T/teacher` of the variant `teacher`); "" for those of the package,
            or for random weights where a teacher is trained.
        tokenizer: variants of the image tokenizer.
        world: number of training samples.
        evaluate: number of samples to measure.
        stages: name -> options of an ordinary stage; which stages there are decides on the recipe.
    """

    stage: str = STAGE
    seed: int = 42
    teacher: str = ""
    tokenizer: TokenizerOptions = TokenizerOptions()
    world: WorldOptions = WorldOptions()
    evaluate: MeasureOptions = MeasureOptions()
    stages: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_seed1(self) -> bool:
        """Whether codes predict text states, Stable Diffusion draws, and an OPT captions and draws."""
        return "pretrain_opt" in self.stages

    def problems(self) -> Problems:
        yield from negative(self, "seed")
        autoencoder = self.stages.get("autoencoder")
        if not self.teacher and autoencoder and "vae_decoder" in autoencoder["model"]["train"]:
            yield "teacher", "is empty, but this variant trains an earlier teacher further: name its directory"
        if self.is_seed1 and (
            self.tokenizer.codes_per_image != TokenizerOptions.codes_per_image or not self.tokenizer.contrastive
        ):
            yield (
                "tokenizer",
                "changes codes_per_image or contrastive, which SEED-1's recipe cannot: take the variant world",
            )


@dataclasses.dataclass(frozen=True)
class TeacherModelConfig(Section):
    """The attribute reader.

    Attributes:
        config: architecture of the tokenizer that starts from it, "full", "small" or "tiny".
        init: directory of an earlier teacher, with `vision` and `start`, to continue from; "" for random weights.
    """

    config: str = "small"
    init: str = ""

    def problems(self) -> Problems:
        yield from not_one_of(self, config=MODELS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherStageConfig(TrainConfig):
    """Options of the stage `world_teacher`.

    Attributes:
        data: captioned images of the synthetic world.
    """

    stage: str = "world_teacher"
    model: TeacherModelConfig = TeacherModelConfig()
    data: ImageDataConfig = ImageDataConfig()

    def problems(self) -> Problems:
        yield from super().problems()
        if self.data.demo:
            yield "data.demo", "is True, but this stage makes no demo data: set it to False"
        if not self.data.mixture:
            yield "data.mixture", "is empty: name at least one directory of shards of `--source world`, task captions"


@dataclasses.dataclass(frozen=True)
class TextTeacherModelConfig(Section):
    """The text encoder.

    Attributes:
        width: of its states.
        layers: number of blocks.
        heads: attention heads.
        vision: model directory of the vision tower whose image embeddings captions are matched with.
    """

    width: int = 96
    layers: int = 2
    heads: int = 4
    vision: str = ""

    def problems(self) -> Problems:
        yield from not_positive(self, "width", "layers", "heads")


@dataclasses.dataclass(frozen=True)
class TextTeacherDataConfig(ImageDataConfig):
    """Captioned images.

    Attributes:
        vocabulary: directory of the captions' CLIP vocabulary.
    """

    vocabulary: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTeacherConfig(TrainConfig):
    """Options of the stage `world_text`."""

    stage: str = "world_text"
    model: TextTeacherModelConfig = TextTeacherModelConfig()
    data: TextTeacherDataConfig = TextTeacherDataConfig()

    def problems(self) -> Problems:
        yield from super().problems()
        for section, option in ((self.model, "vision"), (self.data, "vocabulary")):
            if not getattr(section, option):
                yield f"{'model' if option == 'vision' else 'data'}.{option}", "is empty: the recipe names it"
