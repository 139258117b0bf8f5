"""Options of the image tokenizer's two stages."""

import dataclasses

from seed_jax.train.config.common import EvaluateConfig, ImageDataConfig, Problems, TrainConfig
from seed_jax.train.config.schema import Section, negative, not_one_of, not_positive, not_ratio

MODELS = ("full", "small", "tiny")
HEADS = ("mlp", "reverse_qformer", "text_features")


@dataclasses.dataclass(frozen=True)
class InitFromConfig(Section):
    """Weights to start from; later ones replace earlier ones, and each may be "".

    Attributes:
        model: model directory or workdir of a tokenizer stage.
        vit: EVA ViT-g, `eva_vit_g.pth`.
        bert: Hugging Face directory or file of bert-base-uncased.
        blip2: BLIP-2 stage I, `blip2_pretrained.pth`.
        quantizer: official SEED-2 tokenizer, `seed_quantizer.pt`.
    """

    model: str = ""
    vit: str = ""
    bert: str = ""
    blip2: str = ""
    quantizer: str = ""

    def files(self) -> dict[str, str]:
        """Return the foreign files that are named, in the order in which they are read."""
        return {kind: path for kind, path in dataclasses.asdict(self).items() if kind != "model" and path}


@dataclasses.dataclass(frozen=True)
class PairDataConfig(ImageDataConfig):
    """Images with captions (spec A.1).

    Attributes:
        vocabulary: vocab.txt of bert-base-uncased or its directory; "" takes that of `init_from.model`.
        text_length: tokens that captions are padded and truncated to.
        augment: crop and flip at random.
        crop_scale: least and greatest share of the area that is cropped.
        crop_ratio: least and greatest aspect ratio of the crop.
    """

    batch_size: int = 4096
    vocabulary: str = ""
    text_length: int = 32
    augment: bool = True
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def problems(self) -> Problems:
        yield from super().problems()
        yield from not_positive(self, "text_length")


@dataclasses.dataclass(frozen=True)
class PairEvaluateConfig(EvaluateConfig):
    """Retrieval and codebook usage on held-out images with captions.

    Attributes:
        text_length: tokens that captions are padded and truncated to.
    """

    text_length: int = 35

    def problems(self) -> Problems:
        yield from super().problems()
        yield from not_positive(self, "text_length")


@dataclasses.dataclass(frozen=True)
class QFormerModelConfig(Section):
    """The image-text model of stage I (spec A.9).

    Attributes:
        config: name of its architecture, "full", "small" or "tiny"; ignored where `init_from.model` is given.
        joint_width: width of the contrastive space.
        dropout: of the Q-Former.
        remat: recompute activations in the backward pass.
        itc_gradient: "own": a feature gets gradients from its own row of the similarity matrix only, as in the
            original; "through_gather": from every row it appears in.
    """

    config: str = "full"
    joint_width: int = 256
    dropout: float = 0.1
    remat: bool = True
    itc_gradient: str = "own"

    def problems(self) -> Problems:
        yield from not_one_of(self, config=MODELS, itc_gradient=("own", "through_gather"))
        yield from not_positive(self, "joint_width")
        yield from not_ratio(self, "dropout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerStageConfig(TrainConfig):
    """Options of stage I, the contrastive training of the causal Q-Former."""

    model: QFormerModelConfig = QFormerModelConfig()
    init_from: InitFromConfig = InitFromConfig()
    data: PairDataConfig = PairDataConfig()
    evaluate: PairEvaluateConfig = PairEvaluateConfig()

    def problems(self) -> Problems:
        yield from super().problems()
        yield from pair_data_problems(self.data, self.init_from)
        if self.optimizer.accumulation != 1:
            yield (
                "optimizer.accumulation",
                (
                    f"is {self.optimizer.accumulation}, expected 1 in stage qformer: negatives come from the whole "
                    "batch, which microbatches would split"
                ),
            )


@dataclasses.dataclass(frozen=True)
class CodebookModelConfig(Section):
    """The tokenizer of stage II (spec A.10).

    Attributes:
        config: name of its architecture, "full", "small" or "tiny", as far as `init_from.model` does not give it.
        head: what predicts generation embeddings: "mlp", as in SEED-2's released weights, "reverse_qformer", the
            default of its training code, or "text_features", SEED-1's Reverse Q-Former.
        num_codes: size of a codebook that starts random; 0 takes that of `config`.
        text_branch: also estimate Stable Diffusion 1's text states, as SEED-2's released weights do.
        joint_width: width of stage I's projections, where official files bring them.
        dropout: of the Q-Formers.
        remat: recompute activations in the backward pass.
    """

    config: str = "full"
    head: str = "mlp"
    num_codes: int = 0
    text_branch: bool = False
    joint_width: int = 256
    dropout: float = 0.1
    remat: bool = True

    def problems(self) -> Problems:
        yield from not_one_of(self, config=MODELS, head=HEADS)
        yield from not_positive(self, "joint_width")
        yield from negative(self, "num_codes")
        yield from not_ratio(self, "dropout")
        if self.text_branch and self.predicts_text:
            yield "text_branch", "is True, but the head text_features predicts text states already: set it to False"

    @property
    def predicts_text(self) -> bool:
        """Whether generation embeddings are text states, as in SEED-1."""
        return self.head == "text_features"


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Weights of the loss terms of stage II and how they are computed; the defaults are the original's (spec A.10).

    Attributes:
        embed: of the vector-quantization loss.
        reconstruction: of the reconstruction of the causal embeddings.
        image: of the distance to CLIP's image embedding.
        text: of the distance to CLIP's text states, which takes the place of `image` in SEED-1.
        reconstruction_kind: "cosine" or, as in the paper, "mse".
        frozen_dropout: keep the dropout of the frozen Q-Former active, as the original does.
    """

    embed: float = 5.0
    reconstruction: float = 2.0
    image: float = 0.5
    text: float = 0.5
    reconstruction_kind: str = "cosine"
    frozen_dropout: bool = False

    def problems(self) -> Problems:
        yield from negative(self, "embed", "reconstruction", "image", "text")
        yield from not_one_of(self, reconstruction_kind=("cosine", "mse"))


@dataclasses.dataclass(frozen=True)
class CodebookConfig(Section):
    """Measures against a collapse of the codebook; the original takes none of them.

    Attributes:
        init: "" keeps the codebook as initialised or loaded, "kmeans" takes centroids of the first vectors.
        kmeans_iterations: iterations of k-means.
        kmeans_vectors: vectors per code that k-means clusters.
        ema_decay: above 0, codes follow the mean of their vectors with this decay instead of a gradient.
        restart_after: above 0, codes unused for so many steps are moved onto a vector of the current batch.
        dead_after: steps without use after which a code counts as dead in the metrics.
    """

    init: str = ""
    kmeans_iterations: int = 10
    kmeans_vectors: int = 32
    ema_decay: float = 0.0
    restart_after: int = 0
    dead_after: int = 100

    def problems(self) -> Problems:
        yield from not_one_of(self, init=("", "kmeans"))
        yield from negative(self, "kmeans_iterations", "restart_after", "dead_after")
        yield from not_positive(self, "kmeans_vectors")
        if not 0 <= self.ema_decay < 1:
            yield "ema_decay", f"is {self.ema_decay}, expected 0 (off) to less than 1"


@dataclasses.dataclass(frozen=True)
class TeacherConfig(Section):
    """Frozen CLIP models whose outputs are the targets.

    Attributes:
        vision: Hugging Face directory of CLIP ViT-H/14; "given" takes `meta["image_embedding"]` of the records;
            "untrained" makes random weights. Not used by the head "text_features".
        text: `text_encoder` directory of Stable Diffusion 1 (CLIP ViT-L/14), for the head "text_features" and for
            `model.text_branch`; "untrained" makes random weights.
        text_vocabulary: `tokenizer` directory of Stable Diffusion 1, for the same; "" with an untrained text encoder
            encodes a caption as its bytes.
    """

    vision: str = ""
    text: str = ""
    text_vocabulary: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookStageConfig(TrainConfig):
    """Options of stage II, the training of the codebook and of the decoder from codes to embeddings."""

    model: CodebookModelConfig = CodebookModelConfig()
    init_from: InitFromConfig = InitFromConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    codebook: CodebookConfig = CodebookConfig()
    teacher: TeacherConfig = TeacherConfig()
    data: PairDataConfig = PairDataConfig(batch_size=16384)
    evaluate: PairEvaluateConfig = PairEvaluateConfig()

    def problems(self) -> Problems:
        yield from super().problems()
        yield from pair_data_problems(self.data, self.init_from)
        if self.codebook.restart_after and self.optimizer.accumulation != 1:
            yield (
                "optimizer.accumulation",
                (
                    f"is {self.optimizer.accumulation}, expected 1 with codebook.restart_after: dead codes move onto "
                    "vectors of the whole batch"
                ),
            )
        if not self.teacher.vision and not self.model.predicts_text:
            yield (
                "teacher.vision",
                (
                    "is empty: name the Hugging Face directory of CLIP ViT-H/14, or 'given' where the records hold "
                    "image embeddings"
                ),
            )
        needs_text = self.model.text_branch or self.model.predicts_text
        has_vocabulary = bool(self.teacher.text_vocabulary) or self.teacher.text == "untrained"
        if needs_text and not (self.teacher.text and has_vocabulary):
            who = "the head text_features" if self.model.predicts_text else "model.text_branch"
            yield (
                "teacher.text",
                (
                    f"and teacher.text_vocabulary are needed by {who}: name the text_encoder and tokenizer directories "
                    "of Stable Diffusion 1"
                ),
            )


def pair_data_problems(data: PairDataConfig, init_from: InitFromConfig) -> Problems:
    """Yield what is missing to read images with captions."""
    if data.demo:
        return
    if not data.mixture:
        yield "data.mixture", "is empty: name at least one directory of shards, or set data.demo=True"
    if not data.vocabulary and not init_from.model:
        yield "data.vocabulary", "is empty: name the vocab.txt of bert-base-uncased or its directory"
