"""Options of the stages that train the language model."""

import dataclasses
from typing import Any

from seed_jax.train.config.common import CheckpointConfig, Problems, TrainConfig
from seed_jax.train.config.schema import Section, negative, not_one_of, not_positive, not_ratio

MODELS = ("seed_8b", "seed_14b", "tiny", "seed_opt_2b7", "opt_tiny")
TRAINABLE = ("lora", "full", "all", "adapters")
SEED_OPT_STAGE = "pretrain_opt"  # `stage` of a run that trains SEED-OPT
REMAT = ("auto", "full", "save_qkv", "dots_no_batch", "dots", "none")
ATTENTION = ("auto", "xla", "chunked", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig(Section):
    """The language model.

    Attributes:
        config: name of its architecture, "seed_8b", "seed_14b" or "tiny", for SEED-OPT "seed_opt_2b7" or "opt_tiny";
            ignored where `init` is given.
        init: model directory or workdir to start from, whose adapters are merged; "" starts from random weights.
        code_vectors: image tokenizer whose codebook SEED-OPT reads images from (stage `pretrain_opt`).
        train: "lora" (adapters, embeddings, head and norms), "full" (everything but the embedding table), "all", or for
            SEED-OPT "adapters" (adapters, embeddings of the image tokens, projection of the code vectors).
        remat: rematerialization policy of a block, see `models/nn/remat.py`; "auto" suits the accelerator.
        attention: implementation of attention, see `models/nn/attention.py`; "auto" suits the accelerator.
    """

    config: str = "seed_8b"
    init: str = ""
    code_vectors: str = ""
    train: str = "lora"
    remat: str = "auto"
    attention: str = "auto"

    def problems(self) -> Problems:
        yield from not_one_of(self, train=TRAINABLE, remat=REMAT, attention=ATTENTION)
        yield from not_one_of(self, config=MODELS)


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
    """Low-rank adapters (spec D.1); used where `model.train` is "lora".

    Attributes:
        rank: of the adapters.
        alpha: the adapters' output is scaled by alpha / rank.
        dropout: rate on the adapters' inputs. The original's 0.05 adds a third to the planned time of an 8B step on v5e
            (2.5 to 3.3 s): it rules out folding adapters into the kernels (docs/scaling.md). Set it to 0 for speed.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05

    def problems(self) -> Problems:
        yield from not_positive(self, "rank")
        yield from not_ratio(self, "dropout")
        if self.dropout == 1:
            yield "dropout", "is 1, expected less: nothing would reach the adapters"


@dataclasses.dataclass(frozen=True)
class LanguageDataConfig(Section):
    """Packed batches of text and image codes.

    Attributes:
        demo: make a small data set from embedded photographs below the workdir.
        vocabulary: directory with tokenizer.model and added_tokens.json; for SEED-OPT that of OPT's tokenizer, to which
            the image tokens are added where added_tokens.json is absent.
        image_tokenizer: fingerprint of the image tokenizer whose codes are expected; "" takes any.
        sequence_length: tokens of a packed row.
        batch_size: packed rows of the global batch.
        prefetch: batches to prepare ahead.
        weight_by: what the weights of the mixture count, "samples" or "tokens".
        mixture: components, see `data/batches/mixture_config.py`.
    """

    demo: bool = False
    vocabulary: str = ""
    image_tokenizer: str = ""
    sequence_length: int = 2048
    batch_size: int = 256
    prefetch: int = 4
    weight_by: str = "samples"
    mixture: tuple[dict[str, Any], ...] = ()

    def problems(self) -> Problems:
        yield from not_positive(self, "sequence_length", "batch_size")
        yield from negative(self, "prefetch")
        yield from not_one_of(self, weight_by=("samples", "tokens"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig(TrainConfig):
    """Options of pre-training and instruction tuning.

    Attributes:
        loss_chunk: positions of a row whose logits are materialized at once.
    """

    model: LanguageModelConfig = LanguageModelConfig()
    lora: LoraConfig = LoraConfig()
    data: LanguageDataConfig = LanguageDataConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every_minutes=30.0)
    loss_chunk: int = 256

    def problems(self) -> Problems:
        yield from super().problems()
        yield from not_positive(self, "loss_chunk")
        is_opt = self.stage == SEED_OPT_STAGE
        if is_opt != self.model.config.startswith(("seed_opt", "opt")) and not self.model.init:
            yield "model.config", f"is {self.model.config!r}, which does not belong to stage {self.stage!r}"
        if self.model.train == "adapters" and not is_opt:
            yield "model.train", f"is 'adapters', which is for stage {SEED_OPT_STAGE!r}: take 'lora'"
        if is_opt and not self.model.code_vectors and not self.data.demo:
            yield "model.code_vectors", "is empty: name SEED-1's image tokenizer (`seed-jax import tokenizer --seed1`)"
        if not self.data.demo:
            if not self.data.mixture:
                yield "data.mixture", "is empty: name at least one directory of shards, or set data.demo=True"
            if not self.data.vocabulary:
                files = "vocab.json and merges.txt" if is_opt else "tokenizer.model and added_tokens.json"
                yield "data.vocabulary", f"is empty: name the directory with {files}"
