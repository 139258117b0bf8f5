"""SEED-OPT, the language model of the first paper: a frozen OPT with LoRA that reads code vectors (spec G).

Image to text: the code vectors of an image, projected by one linear layer, then "A photo of", then the caption. Text to
image: "Generate an image" and the caption, then the tokens of the image, which are appended to the vocabulary. The loss
is on caption and image tokens only. The model was never released; what the paper leaves open is marked in
`configs/pretrain_opt.py`.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.data.text.byte_pair import BytePairModel
from seed_jax.data.text.vocabulary import Vocabulary, image_tokens
from seed_jax.data.text.vocabulary_files import ADDED_TOKENS, VOCAB
from seed_jax.errors import UserError
from seed_jax.files import AnyPath
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.models.opt.config import OptConfig
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.train.stage import LossOutput
from seed_jax.train.stages import warm_start
from seed_jax.train.stages.language import TINY_VOCABULARY, LanguageStage
from seed_jax.typing import ParamPath, Tree


class SeedOptStage(LanguageStage):
    """Pre-training of SEED-OPT."""

    kind = ModelKind.OPT
    import_command = "opt"
    vocabulary_origin = "the directory of facebook/opt-2.7b, whose tokenizer is extended by the image tokens"

    def _vocabulary_directory(self) -> Path | None:
        directory = super()._vocabulary_directory()
        is_plain = directory is not None and (directory / VOCAB).is_file() and not (directory / ADDED_TOKENS).is_file()
        return None if is_plain else directory  # `prepare` extends a plain one

    def _planned_vocabulary_size(self) -> int:
        if self.config.model.config == "opt_tiny":
            return TINY_VOCABULARY
        return self._num_words() + self._tokenizer_sizes().num_codes + 2

    def _num_words(self) -> int:
        """Return how many tokens OPT has without image tokens."""
        init = self.config.model.init
        sizes = OptConfig.seed_2b7()
        if init and Path(init).is_dir():
            sizes = OptConfig.from_dict(model_dir.read_config(init, ModelKind.OPT)[1]["sizes"], init)
        return sizes.vocab_size - (sizes.num_codes + 2 if sizes.num_codes else 0)

    def _tokenizer_sizes(self) -> SeedTokenizerConfig:
        """Return the sizes of the image tokenizer; the released ones where it is absent, as in a plan."""
        path = self._tokenizer_path()
        if path is not None and path.exists():
            folder, stored = model_dir.read_config(path, ModelKind.IMAGE_TOKENIZER)
            return SeedTokenizerConfig.from_dict(stored["sizes"], str(folder / model_dir.CONFIG))
        return SeedTokenizerConfig.tiny() if self.config.data.demo else SeedTokenizerConfig.seed1()

    def _tokenizer_path(self) -> Path | None:
        if self._demo:
            return self._demo.image_tokenizer
        return Path(self.config.model.code_vectors) if self.config.model.code_vectors else None

    def _architecture(self, vocab_size: int) -> DecoderOnlyConfig:
        name, init, tokenizer = self.config.model.config, self.config.model.init, self._tokenizer_sizes()
        if init and Path(init).is_dir():
            sizes = super()._architecture(vocab_size)
            if not isinstance(sizes, OptConfig):
                raise UserError(f"model.init {init} is not an OPT: import one with `seed-jax import opt`.")
        else:
            sizes = OptConfig.tiny(vocab_size) if name == "opt_tiny" else OptConfig.seed_2b7()
            sizes = dataclasses.replace(sizes, vocab_size=vocab_size)
        codes, stored = (tokenizer.num_codes, tokenizer.code_width), (sizes.num_codes, sizes.code_width)
        if stored not in ((0, 0), codes) and Path(init).is_dir():
            raise UserError(
                f"model.init {init} reads {stored[0]} code vectors of width {stored[1]}, model.code_vectors has "
                f"{codes[0]} of width {codes[1]}: name the image tokenizer that it was trained with."
            )
        return dataclasses.replace(sizes, num_codes=codes[0], code_width=codes[1])

    def is_trainable(self, path: ParamPath) -> bool:
        """The code vectors are the image tokenizer's and never train."""
        return path[1] != "code_vectors" and super().is_trainable(path)

    def prepare(self, workdir: AnyPath) -> None:
        directory = Path(self.config.data.vocabulary)
        if not self.config.data.demo and self._vocabulary is None and (directory / VOCAB).is_file():
            added = image_tokens(self._num_words(), self._tokenizer_sizes().num_codes)
            self._extended = tempfile.TemporaryDirectory(prefix="seed_jax_vocabulary_")  # deleted with the stage
            Vocabulary(BytePairModel.load(directory), added, str(directory)).save(self._extended.name)
            self._set_vocabulary(Path(self._extended.name))
        super().prepare(workdir)
        path = self._tokenizer_path()
        if path is None or not path.exists():
            raise UserError(
                f"model.code_vectors {path} does not exist: import SEED-1's image tokenizer with `seed-jax import "
                "tokenizer --seed1`, or name the workdir of configs/tokenizer_codebook.py:seed1."
            )
        if self._vocabulary is not None and self._vocabulary.num_codes != self.model.config.num_codes:
            raise UserError(
                f"data.vocabulary has {self._vocabulary.num_codes} image tokens, the image tokenizer {path} "
                f"{self.model.config.num_codes} codes: they do not belong together."
            )

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        """Return the initial variables with the codebook of the image tokenizer as code vectors."""
        variables = super().init_variables(key, shardings)
        path = self._tokenizer_path()
        assert path is not None  # checked by `prepare`
        codebook = warm_start.open_collections(path, ModelKind.IMAGE_TOKENIZER)["params"]["codebook"]
        own = {"code_vectors": variables["params"]["code_vectors"]}
        codes = warm_start.overlay(own, {"code_vectors": codebook[...]}, str(path))
        return {**variables, "params": {**variables["params"], **codes}}

    def _loss(self, variables: Tree, batch: Mapping[str, Array], rngs: dict[str, Array] | None = None) -> LossOutput:
        if self._freezes_words:
            table = variables["params"]["embed_tokens"]["embedding"]
            table = jnp.where(self._is_word(table), jax.lax.stop_gradient(table), table)
            variables = {**variables, "params": {**variables["params"], "embed_tokens": {"embedding": table}}}
        return super()._loss(variables, batch, rngs)

    def update_statistics(self, before: Tree, after: Tree, statistics: Mapping[str, Array]) -> Tree:
        """Restore the embeddings of words, which decay alone would change."""
        if not self._freezes_words:
            return after
        old, new = (tree["params"]["embed_tokens"]["embedding"] for tree in (before, after))
        table = {"embedding": jnp.where(self._is_word(old), old, new)}
        return {**after, "params": {**after["params"], "embed_tokens": table}}

    @property
    def _freezes_words(self) -> bool:
        return self.config.model.train == "adapters"

    def _is_word(self, table: Array) -> Array:
        """Return which rows of the embedding table belong to words: [rows, 1]."""
        num_words = self.model.config.vocab_size - self.model.config.num_codes - 2
        return (jnp.arange(len(table)) < num_words)[:, None]

    def references(self) -> dict[str, Any]:
        path = None if self._demo else str(Path(self.config.model.code_vectors).absolute())
        return {**super().references(), **({} if path is None else {"image_tokenizer": path})}

    def _prompt_style(self) -> str:
        return "seed1"
