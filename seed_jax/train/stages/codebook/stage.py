"""Stage II of the image tokenizer: the codebook, and the decoder from codes to the condition of a diffusion decoder.

SEED-2 learns to predict CLIP's image embedding (spec A.10), SEED-1 CLIP's text states of the caption (spec G).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from seed_jax import images, sharding
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.tokenizer.key_table import SHARED_MODULES
from seed_jax.data.batches.pairs import PairReader
from seed_jax.data.text import bert
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_pairs import EvalPairs
from seed_jax.files import AnyPath
from seed_jax.losses.next_token import WeightedSum
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.config import CodebookStageConfig
from seed_jax.train.stage import LossOutput
from seed_jax.train.stages.codebook import init
from seed_jax.train.stages.codebook.evaluation import codebook_evaluation
from seed_jax.train.stages.codebook.model import CodebookModel
from seed_jax.train.stages.codebook.objective import loss_terms
from seed_jax.train.stages.codebook.revival import (
    STATS,
    batch_statistics,
    code_usage,
    idle_steps,
    init_stats,
    kmeans,
    update_codebook,
)
from seed_jax.train.stages.codebook.teachers import GIVEN, UNTRAINED, make_teachers
from seed_jax.train.stages.pair_data import make_pair_reader, pair_batch_spec
from seed_jax.train.stages.pair_stage import PairStage
from seed_jax.typing import ParamPath, Tree


class CodebookStage(PairStage[CodebookStageConfig]):
    """Training of the codebook."""

    config_class = CodebookStageConfig
    kind = ModelKind.IMAGE_TOKENIZER

    def _set_model(self, vocab_size: int) -> None:
        config = self.config
        sizes = init.architecture(config, vocab_size)
        precision = Precision("float32", config.precision.compute)
        self.model = CodebookModel(sizes, precision, config.model.remat)
        self.teachers = make_teachers(
            config.teacher,
            image_size=sizes.tokenizer.image_size,
            image_embedding_width=None if sizes.tokenizer.predicts_text else sizes.tokenizer.embedding_width,
            text_states=sizes.text_states,
            precision=precision,
        )

    def abstract_variables(self) -> Tree:
        boxed = self.model.abstract()
        if self.teachers.sources:
            boxed["teacher"] = self.teachers.abstract()
        codebook = sharding.unbox(boxed["params"]["codebook"])
        stats = jax.eval_shape(lambda codebook: init_stats(codebook, self.config.codebook), codebook)
        return {**boxed, STATS: stats}

    def is_trainable(self, path: ParamPath) -> bool:
        """Quantizer, decoders and text branch train; the encoder, the text tower and the teachers do not.

        The codebook's statistics count as trained because they change with every step.
        """
        if path[0] == "params":
            return path[1] not in SHARED_MODULES
        return path[0] in ("text_branch", STATS)

    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        """Compute the weighted sum of all terms, each term, and the use of the codes."""
        dropout_key, restart_key = jax.random.split(key)
        return self._loss(variables, batch, {"dropout": dropout_key}, restart_key)

    def held_out_loss(self, variables: Tree, batch: Mapping[str, Array]) -> LossOutput:
        """Compute the terms alone: the use of the codes is measured over all held-out images, not batch by batch."""
        output = self._loss(variables, batch, None, jax.random.key(0))
        return LossOutput(
            output.total, {name: value for name, value in output.metrics.items() if name.startswith("loss_")}
        )

    def _loss(
        self,
        variables: Tree,
        batch: Mapping[str, Array],
        rngs: dict[str, Array] | None,
        restart_key: Key[Array, ""],
    ) -> LossOutput:
        options, weights = self.config.codebook, variables.get("teacher", {})
        image = images.normalize(batch["image"])
        terms = loss_terms(
            self.config.objective,
            self.model.tokenizer,
            variables,
            image,
            self.teachers.image_target(weights, image, batch),
            branch=self.model.branch,
            text_target=self.teachers.text_target(weights, batch),
            codebook_gradient=not options.ema_decay,
            rngs=rngs,
        )
        codes, num_codes = terms.encoded.codes, self.model.sizes.tokenizer.num_codes
        usage = code_usage(codes, num_codes)
        is_dead = idle_steps(variables[STATS]["idle"], usage.count) >= options.dead_after
        ones = jnp.ones(len(image), jnp.float32)
        shares = {
            "codes_used": usage.used,
            "code_perplexity": usage.perplexity,
            "codes_dead": is_dead.mean(dtype=jnp.float32),
        }
        metrics = {f"loss_{name}": WeightedSum.from_terms(term, ones) for name, term in terms.by_name().items()}
        metrics |= {name: WeightedSum(value, jnp.ones(())) for name, value in shares.items()}
        statistics = batch_statistics(terms.encoded.prequant, codes, num_codes, options, restart_key)
        return LossOutput(WeightedSum.from_terms(terms.total, ones), metrics, statistics)

    def update_statistics(self, before: Tree, after: Tree, statistics: Mapping[str, Array]) -> Tree:
        """Update the codebook by moving averages and restarts, and the statistics of its use."""
        codebook, stats = update_codebook(self.config.codebook, before[STATS], after["params"]["codebook"], statistics)
        return {**after, "params": {**after["params"], "codebook": codebook}, STATS: stats}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        text = self.teachers.text
        return pair_batch_spec(
            self.model.sizes.tokenizer.image_size,
            self.config.data.text_length,
            clip_length=None if text is None else text.config.max_length,
            embedding_width=self._given_embedding_width,
        )

    @property
    def _given_embedding_width(self) -> int | None:
        sizes = self.model.sizes.tokenizer
        return sizes.embedding_width if self.config.teacher.vision == GIVEN and not sizes.predicts_text else None

    def _make_reader(self, vocabulary: BertVocabulary) -> PairReader:
        return make_pair_reader(
            self.config.data,
            self.model.sizes.tokenizer.image_size,
            vocabulary,
            clip_vocabulary=self.teachers.text_vocabulary,
            embedding_width=self._given_embedding_width,
        )

    def _make_evaluation(self, held_out: EvalPairs) -> Callable[[Tree], dict[str, float]]:
        return codebook_evaluation(self.model, held_out)

    def flops_per_unit(self) -> float:
        shapes = sharding.unbox(self.abstract_variables())
        states = self.model.sizes.text_states
        positions = flops.encoder_positions(self.model.sizes.tokenizer, 0, text_states=states[0] if states else 1)

        def collection_flops(name: str) -> float:
            return flops.kernel_flops(shapes[name], positions, lambda path: self.is_trainable((name, *path)))

        return sum(collection_flops(name) for name in ("params", "text_branch") if name in shapes)

    def prepare(self, workdir: AnyPath) -> None:
        teacher, model = self.config.teacher, self.config.model
        sources = {} if model.predicts_text else {"vision": teacher.vision}
        if model.text_branch or model.predicts_text:
            sources |= {"text": teacher.text, "text_vocabulary": teacher.text_vocabulary}
        for option, source in sources.items():
            if source not in ("", GIVEN, UNTRAINED) and not Path(source).exists():
                raise UserError(f"teacher.{option} {source} does not exist: get it with `seed-jax fetch`.")
        super().prepare(workdir)

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        """Return fresh variables, with `init_from` loaded over them and the codebook from k-means where asked."""
        config, options, sizes = self.config, self.config.codebook, self.model.sizes
        key_model, key_teacher, key_codes = jax.random.split(key, 3)
        own = {name: shardings[name] for name in self.model.abstract()}
        init_model = sharding.jit_init(lambda key: sharding.unbox(self.model.init(key)), out_shardings=own)
        variables = init.load_weights(config.init_from, sizes, init_model(key_model))
        if options.init == "kmeans":
            num_codes = sizes.tokenizer.num_codes
            indices = sharding.local_batch_indices(
                sharding.batch_sharding(jax.sharding.get_mesh()), config.data.batch_size
            )
            vectors = init.collect_vectors(
                options.kmeans_vectors * num_codes,
                config.data.batch_size,
                self.model,
                variables,
                self.batches(indices),
            )
            cluster = jax.jit(kmeans, static_argnums=(1, 3))
            centroids = cluster(vectors, num_codes, key_codes, options.kmeans_iterations)
            variables["params"]["codebook"] = jax.device_put(centroids, shardings["params"]["codebook"])
        if self.teachers.sources:
            variables["teacher"] = self.teachers.init(key_teacher, shardings["teacher"])
        first = jax.jit(lambda codebook: init_stats(codebook, options), out_shardings=shardings[STATS])
        return {**variables, STATS: first(variables["params"]["codebook"])}

    def model_config(self) -> dict[str, Any]:
        return self.model.sizes.to_dict()

    def model_files(self) -> dict[str, Path]:
        return {bert.FILE: self._prepared.vocabulary_file} if self.model.sizes.joint_width else {}
