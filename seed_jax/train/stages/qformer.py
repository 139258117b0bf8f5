"""Stage I of the image tokenizer: the causal Q-Former learns to match images and captions (spec A.9)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.key_table import Entry
from seed_jax.convert.tokenizer.key_table import SHARED_MODULES, image_text_table
from seed_jax.data.batches.pairs import PairReader
from seed_jax.data.text import bert
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.evaluation.eval_pairs import EvalPairs
from seed_jax.evaluation.retrieval import PairEmbeddings, recall
from seed_jax.losses.next_token import WeightedSum
from seed_jax.losses.tokenizer import contrastive_loss
from seed_jax.models.abstract import traced_once
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.config import QFormerStageConfig
from seed_jax.train.stage import LossOutput
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.pair_data import make_pair_reader, pair_batch_spec
from seed_jax.train.stages.pair_stage import PairStage
from seed_jax.typing import ParamPath, Tree


class QFormerStage(PairStage[QFormerStageConfig]):
    """Contrastive training of the causal Q-Former."""

    config_class = QFormerStageConfig
    kind = ModelKind.QFORMER

    def _set_model(self, vocab_size: int) -> None:
        precision = Precision("float32", self.config.precision.compute)
        self.model = ImageText(self._architecture(vocab_size), precision, self.config.model.remat)

    def _architecture(self, vocab_size: int) -> ImageTextConfig:
        options, init = self.config.model, self.config.init_from.model
        if init and Path(init).exists():
            folder, stored = model_dir.read_config(init)
            where = str(folder / model_dir.CONFIG)
            if stored["kind"] == ModelKind.QFORMER:
                sizes = ImageTextConfig.from_dict(stored["sizes"], where)
            else:
                sizes = _of_tokenizer(SeedTokenizerConfig.from_dict(stored["sizes"], where), options.joint_width)
        else:
            sizes = _of_tokenizer(getattr(SeedTokenizerConfig, options.config)(), options.joint_width)
        qformer = dataclasses.replace(sizes.qformer, vocab_size=vocab_size, dropout=options.dropout)
        return dataclasses.replace(sizes, qformer=qformer)

    def abstract_variables(self) -> Tree:
        return {"params": _abstract_params(self.model.config, self.model.precision)}

    def is_trainable(self, path: ParamPath) -> bool:
        """Everything but the ViT trains, `ln_vision` included."""
        return path[1] != "vit"

    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        """Compute the contrastive loss over the global batch."""
        return self._loss(variables, batch, {"dropout": key})

    def held_out_loss(self, variables: Tree, batch: Mapping[str, Array]) -> LossOutput:
        return self._loss(variables, batch, None)

    def _loss(self, variables: Tree, batch: Mapping[str, Array], rngs: dict[str, Array] | None) -> LossOutput:
        features: Any = self.model.apply(
            variables,
            images.normalize(batch["image"]),
            batch["text"],
            batch["text_mask"],
            deterministic=rngs is None,
            rngs=rngs,
        )
        through_gather = self.config.model.itc_gradient == "through_gather"
        output = contrastive_loss(features.image, features.text, features.temperature, through_gather=through_gather)
        metrics = {
            "i2t_accuracy": output.image_to_text_accuracy,
            "t2i_accuracy": output.text_to_image_accuracy,
            "temperature": WeightedSum(jnp.float32(features.temperature), jnp.ones(())),
        }
        return LossOutput(output.total, metrics)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return pair_batch_spec(self.model.config.vit.image_size, self.config.data.text_length)

    def flops_per_unit(self) -> float:
        params = sharding.unbox(self.abstract_variables())["params"]
        positions = flops.encoder_positions(self.model.config, self.config.data.text_length)
        return flops.kernel_flops(params, positions, lambda path: self.is_trainable(("params", *path)))

    def _make_reader(self, vocabulary: BertVocabulary) -> PairReader:
        return make_pair_reader(self.config.data, self.model.config.vit.image_size, vocabulary)

    def _make_evaluation(self, held_out: EvalPairs) -> Callable[[Tree], dict[str, float]]:
        return retrieval_evaluation(self.model, held_out)

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        """Return fresh variables with the weights that `init_from` names loaded over them."""
        size = self.model.config.vit.image_size

        def init(key: Key[Array, ""]) -> Tree:
            created = self.model.init(key, jnp.zeros((1, size, size, 3)), jnp.zeros((1, 4), jnp.int32))
            return {"params": sharding.unbox(created["params"])}

        params = sharding.jit_init(init, out_shardings=shardings)(key)["params"]
        table = image_text_table(self.model.config)
        init_from = self.config.init_from
        if init_from.model:
            params = _load_model(Path(init_from.model), table, params)
        return {"params": warm_start.load_foreign(init_from, table, params)}

    def model_config(self) -> dict[str, Any]:
        return {"sizes": self.model.config.to_dict()}

    def model_files(self) -> dict[str, Path]:
        return {bert.FILE: self._prepared.vocabulary_file}


def _of_tokenizer(tokenizer: SeedTokenizerConfig, joint_width: int) -> ImageTextConfig:
    qformer = dataclasses.replace(tokenizer.qformer, vocab_size=tokenizer.qformer.vocab_size or 1)
    return ImageTextConfig(tokenizer.vit, qformer, joint_width, tokenizer.ln_vision_epsilon)


def _load_model(directory: Path, table: Sequence[Entry], params: Tree) -> Tree:
    """Load a stage I model, or of an image tokenizer the encoder and, where it is there, the text side."""
    folder, stored = model_dir.read_config(directory)
    loaded = warm_start.open_collections(directory, stored["kind"])["params"]
    if stored["kind"] != ModelKind.QFORMER:
        params = warm_start.load_extras(folder, table, params)
        loaded = warm_start.select(loaded, SHARED_MODULES)
    return warm_start.overlay(params, loaded, str(directory))


def retrieval_evaluation(model: ImageText, held_out: EvalPairs) -> Callable[[Tree], dict[str, float]]:
    """Return a function from variables to recall at 1, 5 and 10, in both directions."""

    def embed_images(variables: Tree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        states: Any = model.apply(variables, images.normalize(rows["image"]), method="embeddings")
        vector: Any = model.apply(variables, states, method="project")
        return {"vector": vector}

    def embed_texts(variables: Tree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        vector: Any = model.apply(variables, rows["text"], rows["text_mask"], method="embed_text")
        return {"vector": vector}

    def run(variables: Tree) -> dict[str, float]:
        image_vectors = held_out.embed_images(embed_images, variables)["vector"]
        text_vectors = held_out.embed_captions(embed_texts, variables)["vector"]
        return recall(PairEmbeddings(image_vectors, text_vectors, held_out.image_of_text))

    return run


@traced_once
def _abstract_params(config: ImageTextConfig, precision: Precision) -> Tree:
    def init() -> Any:
        image = jnp.zeros((1, config.vit.image_size, config.vit.image_size, 3))
        return ImageText(config, precision).init(jax.random.key(0), image, jnp.zeros((1, 4), jnp.int32))["params"]

    return jax.eval_shape(init)
