"""What both stages of the image tokenizer share: images with captions as training data and as held-out set."""

import abc
from collections.abc import Callable
from typing import TypeVar

from seed_jax.data.batches.pairs import PairReader
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_pairs import EvalPairs
from seed_jax.files import AnyPath
from seed_jax.models.tokenizer.image_text import BERT_VOCAB_SIZE
from seed_jax.train import flops
from seed_jax.train.config import CodebookStageConfig, QFormerStageConfig
from seed_jax.train.stage import Batches, Evaluator, Stage
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
        return (Evaluator("eval", config.evaluate.every_steps, self._make_evaluation(held_out)),)
