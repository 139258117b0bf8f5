"""Stages that train the language model: next-token prediction over packed text and image codes (spec D).

`model.train` selects what is trained: "lora" adapters together with embeddings, head and norms (spec D.1); "full",
everything but the embedding table (spec D.6: freezing it is more stable); "all".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Key

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import LANGUAGE_MODELS, ModelKind
from seed_jax.data.batches.mixture_config import make_mixture
from seed_jax.data.batches.packing import empty_batch
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.data.text.vocabulary_files import TOKENIZER_FILES
from seed_jax.errors import UserError
from seed_jax.files import AnyPath
from seed_jax.losses.next_token import WeightedSum, next_token_loss
from seed_jax.models.language_models import kind_of, model_class, read_sizes
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import Precision
from seed_jax.train import flops
from seed_jax.train.config import LanguageConfig
from seed_jax.train.runtime.workdir import demo_directory
from seed_jax.train.stage import Batches, Evaluator, LossOutput, Stage
from seed_jax.train.stages import language_init
from seed_jax.train.stages.held_out_loss import held_out_evaluators
from seed_jax.typing import ParamPath, Tree

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

TINY_VOCABULARY = 530  # tokens of the vocabulary that the demo makes


def is_trained_with_lora(path: ParamPath) -> bool:
    """Whether a variable trains in LoRA stages: adapters, embeddings, head and norms do (spec D.1)."""
    return path[0] == "lora" or path[1] in ("embed_tokens", "lm_head") or _is_norm(path)


def _is_norm(path: ParamPath) -> bool:
    return path[-1] == "scale" or (path[-1] == "bias" and path[-2].endswith("norm"))


def is_trained_in_full(path: ParamPath) -> bool:
    """Whether a variable trains in full fine-tuning: everything but the embedding table does (spec D.6)."""
    return path[1] != "embed_tokens"


def is_trained_beside_opt(path: ParamPath) -> bool:
    """Whether a variable of SEED-OPT trains: adapters, the projection of the code vectors, embeddings (spec G).

    Of the embeddings only the rows of the image tokens change, see `SeedOptStage`.
    """
    return path[0] == "lora" or path[1] in ("code_proj", "embed_tokens")


def is_trained_from_scratch(path: ParamPath) -> bool:
    """Everything trains: the embeddings of a randomly initialized model are not worth keeping."""
    return True


# `model.train` -> which variables train
TRAINABLE: dict[str, Callable[[ParamPath], bool]] = {
    "lora": is_trained_with_lora,
    "full": is_trained_in_full,
    "all": is_trained_from_scratch,
    "adapters": is_trained_beside_opt,
}


class LanguageStage(Stage[LanguageConfig]):
    """Pre-training with LoRA, full fine-tuning, or instruction tuning."""

    config_class = LanguageConfig
    kind = ModelKind.LLAMA
    unit = "tokens"
    import_command: ClassVar[str] = "llama"
    vocabulary_origin: ClassVar[str] = (
        "the text tokenizer of the image tokenizer's release: `seed-jax fetch seed-tokenizer-2`"
    )

    def __init__(self, config: LanguageConfig):
        super().__init__(config)
        self._demo: Any = None
        self._set_vocabulary(self._vocabulary_directory())

    def _vocabulary_directory(self) -> Path | None:
        directory = Path(self.config.data.vocabulary)
        return directory if self.config.data.vocabulary and directory.is_dir() else None

    def _set_vocabulary(self, directory: Path | None) -> None:
        """Derive the architecture from the vocabulary, or where its files are absent (as in a plan) from its size."""
        config = self.config
        self._vocabulary: Vocabulary | None = None
        if directory is not None:
            self._vocabulary = vocabulary = Vocabulary.load(directory)
            size = vocabulary.size
            codes = range(vocabulary.first_code, vocabulary.first_code + vocabulary.num_codes)
        else:  # which tokens are image codes is unknown without the files, and does not change the program's cost
            size = self._planned_vocabulary_size()
            codes = range(size // 2, size)
        self._vocabulary_files = directory
        self._image_codes = codes
        with_lora = config.model.train in ("lora", "adapters")
        architecture = self._architecture(size)
        model = model_class(architecture)
        self.kind = kind_of(architecture)
        targets = model.lora_targets
        self.model = model(
            architecture,
            precision=Precision("float32", config.precision.compute),
            remat=config.model.remat,
            lora=LoraSpec(targets, config.lora.rank, config.lora.alpha, config.lora.dropout) if with_lora else None,
            attention=config.model.attention,
        )

    def _planned_vocabulary_size(self) -> int:
        return TINY_VOCABULARY if self.config.model.config == "tiny" else LlamaConfig.seed_8b().vocab_size

    def _architecture(self, vocab_size: int) -> DecoderOnlyConfig:
        name, init = self.config.model.config, self.config.model.init
        if init and Path(init).is_dir():
            _, stored = model_dir.read_config(init, LANGUAGE_MODELS)
            return read_sizes(stored["kind"], {**stored["sizes"], "vocab_size": vocab_size}, init)
        if name == "tiny":
            return LlamaConfig.tiny(vocab_size)
        architecture = LlamaConfig.seed_14b() if name == "seed_14b" else LlamaConfig.seed_8b()
        if architecture.vocab_size != vocab_size:
            raise UserError(
                f"data.vocabulary has {vocab_size} tokens, model.config={name} needs {architecture.vocab_size}."
            )
        return architecture

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    @property
    def units_per_batch(self) -> int:
        return self.batch_size * self.config.data.sequence_length

    def abstract_variables(self) -> Tree:
        return language_init.abstract_variables(self.model)

    def is_trainable(self, path: ParamPath) -> bool:
        return TRAINABLE[self.config.model.train](path)

    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        """Compute the next-token loss; reported apart for image codes and for everything else."""
        return self._loss(variables, batch, {"dropout": key})

    def _loss(self, variables: Tree, batch: Mapping[str, Array], rngs: dict[str, Array] | None = None) -> LossOutput:
        hidden: Any = self.model.apply(
            variables,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            deterministic=rngs is None,
            method="features",
            rngs=rngs,
        )
        targets = batch["targets"]
        losses = next_token_loss(
            hidden,
            self.model.head_kernel(variables["params"]),
            targets,
            batch["loss_mask"],
            vocab_size=self.model.config.vocab_size,
            subset_mask=(targets >= self._image_codes.start) & (targets < self._image_codes.stop),
            chunk_size=self.config.loss_chunk,
            precision=self.model.precision,
        )
        is_filled = batch["segment_ids"] > 0
        packed = WeightedSum(is_filled.sum().astype(jnp.float32), jnp.float32(is_filled.size))
        metrics = {"loss_text": losses.rest, "loss_image": losses.subset, "packed_share": packed}
        return LossOutput(losses.total, metrics)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows = empty_batch(1, self.config.data.sequence_length)
        return {name: jax.ShapeDtypeStruct(row.shape[1:], row.dtype) for name, row in rows.items()}

    def flops_per_unit(self) -> float:
        flat: dict[ParamPath, Any] = flatten_dict(sharding.unbox(self.abstract_variables()))
        matrices = {path: leaf.size for path, leaf in flat.items() if path[-1] in ("kernel", "a", "b")}
        if ("params", "lm_head", "kernel") not in flat:  # the head is the embedding table
            table = ("params", "embed_tokens", "embedding")
            matrices[table] = flat[table].size
        trained = sum(size for path, size in matrices.items() if self.is_trainable(path))
        return flops.transformer_flops_per_token(
            trained_matmul=trained,
            frozen_matmul=sum(matrices.values()) - trained,
            layers=self.model.config.num_layers,
            hidden=self.model.config.hidden_size,
            length=self.config.data.sequence_length,
        )

    @property
    def flops_convention(self) -> str:
        return flops.LANGUAGE_CONVENTION

    def prepare(self, workdir: AnyPath) -> None:
        self._workdir = workdir
        data, init = self.config.data, self.config.model.init
        missing = []
        if init and not (Path(init).is_dir() or "://" in init):
            missing.append(
                f"model.init {init} (get official weights with `seed-jax fetch` and `seed-jax import "
                f"{self.import_command} --from DIR --out {init}`)"
            )
        if data.demo:
            from seed_jax import demo  # imports the inference side, which only the demo needs

            self._demo = demo.prepare_language_demo(demo_directory(workdir, "demo"), self.config.seed)
            self._set_vocabulary(self._demo.vocabulary)
        elif self._vocabulary is None:
            missing.append(f"data.vocabulary {data.vocabulary} ({self.vocabulary_origin})")
        if not data.demo:
            shards = [path for entry in data.mixture for path in _paths(entry) if not _exists(path)]
            if shards:
                shown = ", ".join(shards[:3]) + (f" and {len(shards) - 3} more" if len(shards) > 3 else "")
                missing.append(
                    f"shards {shown} (make them with `seed-jax data build --source KIND --from PATH --out DIR`)"
                )
        if missing:
            raise UserError(f"The run cannot start; missing are: {'; '.join(missing)}.")

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        merged_dtype = self.config.precision.frozen if self.model.lora else "float32"
        return language_init.init_variables(self.model, self.config.model.init, merged_dtype, key, shardings)

    def _mixture(self) -> Sequence[Mapping[str, Any]]:
        return self._demo.mixture(self.config.stage) if self._demo else self.config.data.mixture

    def batches(self, local_indices: list[int]) -> Batches:
        return self._packed_batches(self._mixture(), local_indices)

    def _packed_batches(self, entries: Sequence[Mapping[str, Any]], local_indices: list[int]) -> Batches:
        from seed_jax.data.batches.packed import packed_batches  # imports Grain, which a plan does not need

        data = self.config.data
        if self._vocabulary is None:
            raise UserError("The stage has no vocabulary: call prepare first.")
        return iter(
            packed_batches(
                make_mixture(entries, self._vocabulary, data.weight_by),
                batch_size=data.batch_size,
                sequence_length=data.sequence_length,
                batch_indices=local_indices,
                seed=self.config.seed,
                tokenizer=data.image_tokenizer or None,
                prefetch=data.prefetch,
            )
        )

    def evaluators(self) -> tuple[Evaluator, ...]:
        """Return the loss on `evaluate.data`, rendered like the first component of the mixture."""
        evaluate = self.config.evaluate

        def make_batches(local_indices: list[int]) -> Batches:
            template = {key: value for key, value in self._mixture()[0].items() if key in ("task", "params")}
            return self._packed_batches([{**template, "path": evaluate.data, "weight": 1.0}], local_indices)

        return held_out_evaluators(evaluate, self._loss, make_batches, self.batch_size)

    def eval_model(self) -> Callable[[Tree], "EvalModel"]:
        from seed_jax.train.stages.language_eval import eval_model  # the inference side, which only tasks need

        evaluate = self.config.evaluate
        tokenizer = Path(evaluate.image_tokenizer) if evaluate.image_tokenizer else None
        if tokenizer is None and self._demo:
            tokenizer = self._demo.image_tokenizer
        if self._vocabulary is None:
            raise UserError("The stage has no vocabulary: call prepare first.")
        return eval_model(
            self.model, self._vocabulary, self._prompt_style(), self.config.precision.compute, evaluate, tokenizer
        )

    def model_config(self) -> dict[str, Any]:
        spec = self.model.lora
        lora = {"rank": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout} if spec else None
        return {"sizes": self.model.config.to_dict(), "lora": lora}

    def references(self) -> dict[str, Any]:
        """Return the prompt style that training used, and the demo's image tokenizer."""
        tokenizer = None
        if self._demo:
            # Relative to the directory of config.json, so that a workdir can be moved.
            tokenizer = str(Path("..") / self._demo.image_tokenizer.relative_to(self._workdir))
        return {"image_tokenizer": tokenizer, "prompt_style": self._prompt_style()}

    def _prompt_style(self) -> str:
        if self.config.stage != "sft":
            return "base"
        params = [entry.get("params", {}) for entry in self.config.data.mixture]
        styles = {values.get("style", "vicuna") for values in params}
        return styles.pop() if len(styles) == 1 else "vicuna"

    def model_files(self) -> dict[str, Path]:
        directory = self._vocabulary_files
        if directory is None:
            return {}
        return {name: directory / name for name in TOKENIZER_FILES if (directory / name).exists()}

    def finish(self, variables: Tree, workdir: AnyPath) -> None:
        """Show answers of a demo's model."""
        if self._demo:
            from seed_jax import demo

            demo.show_samples(self._demo, self.config.stage, Path(workdir))


def _paths(entry: Mapping[str, Any]) -> list[str]:
    path = entry.get("path", "")
    return [str(path)] if isinstance(path, str | Path) else [str(one) for one in path]


def _exists(path: str) -> bool:
    return "://" in path or Path(path).is_dir()
