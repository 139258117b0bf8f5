"""The emoji recipe: every stage of SEED from scratch on images that nobody made for it, as `configs/emoji.py` says.

Trained on the images of some studios, measured on those of another, whose artwork no training sees.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from seed_jax.files import read_json, write_json
from seed_jax.recipes.emoji.config import EmojiConfig
from seed_jax.recipes.emoji.corpus import TEST, Corpus, build_images, build_language_shards
from seed_jax.recipes.emoji.image_text_stage import export_vision
from seed_jax.recipes.emoji.packages import SYMBOLS, EmojiSet, read_packages
from seed_jax.recipes.recipe import CPU_TIMES, Recipe, Step, provenance
from seed_jax.train.config.schema import parse
from seed_jax.train.runtime import workdir as workdirs

RESULTS = "results.json"
CODES = "codes.json"  # the part of the results that needs neither decoder nor language model


def run(config: ml_collections.ConfigDict | Mapping[str, Any], workdir: str | Path) -> None:
    """Run the recipe, or what remains of it.

    Args:
        config: options, see `EmojiConfig`.
        workdir: where everything is written.

    Raises:
        UserError: bad options or images, or a workdir that was begun with other options.
    """
    options = parse(EmojiConfig, config)
    directory = workdirs.resolve_local(workdir, "the emoji recipe")
    recipe = EmojiRecipe(options, directory)
    _ = recipe.emoji  # bad images are reported before anything is written
    recipe.run()


class EmojiRecipe(Recipe):
    """Train image tokenizer, decoder and language model from random weights, and measure them."""

    config: EmojiConfig

    def __init__(self, config: EmojiConfig, workdir: Path):
        super().__init__(config, workdir)
        self.corpus = Corpus(workdir / "data")

    @functools.cached_property
    def emoji(self) -> EmojiSet:
        """The images."""
        packages = self.config.packages
        return read_packages(Path(packages.directory), (*packages.train, packages.test))

    def steps(self) -> Iterator[Step]:
        yield Step("data", 10, self.build_data)
        yield Step("image_text", 1100, self.train_image_text)
        yield Step("codebook", 180, self.train_codebook)
        yield Step("pixel_codes", 890, self.make_pixel_codes)
        yield Step("measure_codes", 25, self.measure_codes)
        yield Step("autoencoder", 530, self.train_autoencoder)
        yield Step("decoder", 880, self.train_decoder)
        yield Step("tokenize", 25, self.tokenize)
        yield Step("sft", 540, self.train_language)
        yield Step("bundle", 1, self.bundle)
        yield Step("evaluate", 570, self.evaluate)

    @property
    def vision(self) -> Path:
        """The CLIP vision tower that the first stage trained."""
        return self.workdir / "vision"

    def build_data(self) -> None:
        build_images(self.corpus, self.emoji, self.config)

    def train_image_text(self) -> None:
        paths = {"data.vocabulary": self.corpus.bert_vocabulary, "evaluate.data": self.corpus.shards(TEST, SYMBOLS)}
        self.train("image_text", self.corpus.image_mixture(), paths)
        export_vision(self.workdir / "image_text", self.vision)

    def train_codebook(self) -> None:
        paths = {
            "init_from.model": self.workdir / "image_text",
            "teacher.vision": self.vision,
            "data.vocabulary": self.corpus.bert_vocabulary,
            "evaluate.data": self.corpus.shards(TEST, SYMBOLS),
        }
        self.train("codebook", self.corpus.image_mixture(), paths)

    def train_autoencoder(self) -> None:
        self.train("autoencoder", self.corpus.image_mixture(), {"source.vision": self.vision})

    def train_decoder(self) -> None:
        paths = {"model.init": self.workdir / "autoencoder", "source.tokenizer": self.workdir / "codebook"}
        self.train("decoder", self.corpus.image_mixture(), paths)

    def tokenize(self) -> None:
        build_language_shards(self.corpus, self.emoji, self.config, self.workdir / "codebook")

    def train_language(self) -> None:
        self.train("sft", self.corpus.language_mixture(), {"data.vocabulary": self.corpus.vocabulary})

    def bundle(self) -> None:
        """Make the workdir a model for `seed-jax generate --model WORKDIR`."""
        from seed_jax.inference.language_model import write_bundle

        write_bundle(
            self.workdir,
            language_model=self.workdir / "sft",
            image_tokenizer=self.workdir / "codebook",
            decoder=self.workdir / "decoder",
        )

    def make_pixel_codes(self) -> None:
        from seed_jax.recipes.emoji.measure import write_pixel_codes

        write_pixel_codes(self.config, self.emoji, self.corpus, self.workdir)

    def measure_codes(self) -> None:
        from seed_jax.recipes.emoji.measure import measure_tokenizer

        numbers = measure_tokenizer(self.config, self.emoji, self.workdir)
        write_json(self.workdir / CODES, numbers)
        _log(numbers)

    def evaluate(self) -> None:
        # Imported late: training needs none of them.
        from seed_jax.inference.language_model import update_bundle_card
        from seed_jax.recipes.emoji.measure import measure
        from seed_jax.recipes.emoji.report_page import write_report

        results = measure(self.config, self.emoji, self.workdir, read_json(self.workdir / CODES))
        write_json(self.workdir / RESULTS, results.numbers)
        times = {**self.times(), "evaluate": self._clock.wall()}
        cpu_seconds = sum(self.times(CPU_TIMES).values()) + self._clock.cpu()
        write_report(self.workdir, self.config, results, times, provenance(self.config.seed, cpu_seconds))
        update_bundle_card(self.workdir)  # with the results
        _log(results.numbers)


def _log(numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        logging.info("%-48s %.3f", name, value)
