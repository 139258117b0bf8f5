"""What both stages of the image tokenizer share: images with captions as training data and as held-out set."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

from jaxtyping import Array

from seed_jax.data.batches.pairs import PairReader
from seed_jax.data.batches.record_stream import MixtureComponent
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_pairs import EvalPairs
from seed_jax.files import AnyPath
from seed_jax.models.tokenizer.image_text import BERT_VOCAB_SIZE
from seed_jax.train import flops
from seed_jax.train.config import CodebookStageConfig, QFormerStageConfig
from seed_jax.train.stage import Batches, Evaluator, LossOutput, Stage
from seed_jax.train.stages.held_out_loss import held_out_loss
from seed_jax.train.stages.pair_data import PairSources, find_pair_sources, image_batches, open_held_out
from seed_jax.typing import Tree

Config = TypeVar("Config", bound=QFormerStageConfig | CodebookStageConfig)


class PairStage(Stage[Config]):
    """A stage that trains on images with captions; a subclass defines the model, its loss and its evaluation."""

    def __init__(self, config: Config):
        super().__init__(config)
        self._sources: PairSources | None = None
        self._set_model(BERT_VOCAB_SIZE)

    @abc.abstractmethod
    def _set_model(self, vocab_size: int) -> None:
        """Construct the model for a vocabulary of the captions; `prepare` calls it again with the real size."""

    @abc.abstractmethod
    def _make_reader(self, vocabulary: BertVocabulary) -> PairReader:
        """Return the reader of training rows."""

    @abc.abstractmethod
    def held_out_loss(self, variables: Tree, batch: Mapping[str, Array]) -> LossOutput:
        """Compute the loss of a batch without dropout."""

    @abc.abstractmethod
    def _make_evaluation(self, held_out: EvalPairs) -> Callable[[Tree], dict[str, float]]:
        """Return a function from variables to metrics on held-out images."""

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    @property
    def flops_convention(self) -> str:
        return flops.TOKENIZER_CONVENTION

    def prepare(self, workdir: AnyPath) -> None:
        config = self.config
        self._sources = find_pair_sources(config.data, config.evaluate, config.init_from, workdir)
        self._set_model(self._sources.vocabulary.size)

    @property
    def _prepared(self) -> PairSources:
        if self._sources is None:
            raise UserError("The stage has no data: call prepare first.")
        return self._sources

    def batches(self, local_indices: list[int]) -> Batches:
        sources = self._prepared
        reader = self._make_reader(sources.vocabulary)
        return image_batches(self.config.data, sources.mixture, reader, self.config.seed, local_indices)

    def evaluators(self) -> tuple[Evaluator, ...]:
        config, sources = self.config, self._prepared
        reader = self._make_reader(sources.vocabulary)
        held_out = open_held_out(sources, reader, config.evaluate, config.data.batch_size)
        if held_out is None:
            return ()
        plain = dataclasses.replace(reader, augmentation=None)

        def make_batches(local_indices: list[int]) -> Batches:
            component = MixtureComponent(str(sources.held_out))
            return image_batches(config.data, (component,), plain, config.seed, local_indices)

        loss = held_out_loss(
            self.held_out_loss,
            make_batches,
            batch_size=self.batch_size,
            num_batches=-(-held_out.num_images // self.batch_size),
        )
        measure = self._make_evaluation(held_out)
        return (
            Evaluator("eval", config.evaluate.every_steps, lambda variables: {**loss(variables), **measure(variables)}),
        )
