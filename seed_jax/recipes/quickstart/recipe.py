"""The quickstart: SEED's stages on a synthetic world, as `configs/quickstart.py` configures them."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_collections

from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.files import write_json
from seed_jax.recipes.quickstart import teacher_files
from seed_jax.recipes.quickstart.config import QuickstartConfig
from seed_jax.recipes.quickstart.corpus import Corpus, build_image_shards, build_language_shards
from seed_jax.recipes.recipe import CPU_TIMES, Recipe, Step, provenance
from seed_jax.train.config.schema import parse
from seed_jax.train.runtime import workdir as workdirs


def run(config: ml_collections.ConfigDict | Mapping[str, Any], workdir: str | Path) -> None:
    """Run a recipe, or what remains of it.

    Args:
        config: options, see `QuickstartConfig`.
        workdir: where everything is written.

    Raises:
        UserError: bad options, or a workdir that was begun with other options.
    """
    options = parse(QuickstartConfig, config)
    seed_recipe = Seed1Quickstart if options.is_seed1 else Quickstart
    recipe = TeacherTraining if "reader" in options.stages else seed_recipe
    directory = workdirs.resolve_local(workdir, "the quickstart")
    recipe(options, directory).run()


class WorldRecipe(Recipe):
    """A recipe on images of the synthetic world."""

    def __init__(self, config: QuickstartConfig, workdir: Path):
        super().__init__(config, workdir)
        self.corpus = Corpus(workdir / "data")

    def build_images(self) -> None:
        build_image_shards(self.corpus, self.config)


class Quickstart(WorldRecipe):
    """Train the image tokenizer, the decoder and the language model from the teacher's networks, and measure them."""

    language_model: ClassVar[str] = "sft"  # stage whose workdir holds the language model to measure

    @property
    def teacher(self) -> Path:
        return Path(self.config.teacher or self.workdir / "teacher")

    def steps(self) -> Iterator[Step]:
        tokenizer = self.config.tokenizer
        if not self.config.teacher:
            yield Step("teacher", 4, self.unpack_teacher)
        yield Step("images", 16, self.build_images)
        if tokenizer.contrastive:
            yield Step("qformer", 64, self.train_qformer)
        yield Step("codebook", 86, self.train_codebook)
        yield Step("decoder", 90, self.train_decoder)
        if tokenizer.codes_per_image == CODES_PER_IMAGE:
            yield Step("tokenize", 65, self.tokenize)
            yield Step("pretrain", 85, self.pretrain)
            yield Step("sft", 145, self.finetune)
            yield Step("bundle", 1, self.bundle)
        yield Step("evaluate", 33, self.evaluate)

    def unpack_teacher(self) -> None:
        tokenizer = self.config.tokenizer
        teacher_files.unpack(self.teacher, codes_per_image=tokenizer.codes_per_image, causal=tokenizer.causal)

    def train_qformer(self) -> None:
        self.train("qformer", self.corpus.image_mixture(), self._tokenizer_paths(self.teacher / "start"))

    def train_codebook(self) -> None:
        stage_1 = self.workdir / "qformer" if self.config.tokenizer.contrastive else self.teacher / "start"
        paths = {**self._tokenizer_paths(stage_1), "teacher.vision": self.teacher / "vision"}
        self.train("codebook", self.corpus.image_mixture(), paths)

    def _tokenizer_paths(self, init_from: Path) -> dict[str, Path]:
        return {
            "init_from.model": init_from,
            "data.vocabulary": self.corpus.bert_vocabulary,
            "evaluate.data": self.corpus.held_out_images,
        }

    def train_decoder(self) -> None:
        paths = {"model.init": self.teacher / "unclip", "source.tokenizer": self.workdir / "codebook"}
        self.train("decoder", self.corpus.image_mixture(), paths)

    def tokenize(self) -> None:
        build_language_shards(self.corpus, self.config, self.workdir / "codebook")

    def pretrain(self) -> None:
        paths = {"data.vocabulary": self.corpus.vocabulary}
        self.train("pretrain", self.corpus.language_mixture("pretrain"), paths)

    def finetune(self) -> None:
        paths = {"data.vocabulary": self.corpus.vocabulary, "model.init": self.workdir / "pretrain"}
        self.train("sft", self.corpus.language_mixture("sft"), paths)

    def bundle(self) -> None:
        """Make the workdir a model for `seed-jax generate --model WORKDIR`."""
        from seed_jax.inference.language_model import write_bundle

        write_bundle(
            self.workdir,
            language_model=self.workdir / self.language_model,
            image_tokenizer=self.workdir / "codebook",
            decoder=self.workdir / "decoder",
        )

    def evaluate(self) -> None:
        # Imported late: training needs none of them.
        from seed_jax.inference.language_model import update_bundle_card
        from seed_jax.recipes.quickstart.measure import measure
        from seed_jax.recipes.quickstart.report_page import write_report

        results = measure(self.config.evaluate, self.config.world.side, self.teacher, self.workdir)
        write_json(self.workdir / "results.json", results.numbers)
        if (self.workdir / self.language_model).is_dir():
            times = {**self.times(), "evaluate": self._clock.wall()}
            cpu_seconds = sum(self.times(CPU_TIMES).values()) + self._clock.cpu()
            write_report(self.workdir, results, times, provenance(self.config.seed, cpu_seconds))
            update_bundle_card(self.workdir)  # with the results
        for name, value in results.numbers.items():
            logging.info("%-40s %.3f", name, value)


class Seed1Quickstart(Quickstart):
    """The same with SEED-1: its text encoder is trained first, and its language model captions and draws only."""

    language_model = "pretrain_opt"

    def steps(self) -> Iterator[Step]:
        if not self.config.teacher:
            yield Step("teacher", 4, self.unpack_teacher)
        yield Step("images", 16, self.build_images)
        yield Step("text", 60, self.train_text)
        yield Step("qformer", 64, self.train_qformer)
        yield Step("codebook", 120, self.train_codebook)
        yield Step("decoder", 400, self.train_decoder)
        yield Step("tokenize", 30, self.tokenize)
        yield Step("pretrain_opt", 150, self.pretrain)
        yield Step("bundle", 1, self.bundle)
        yield Step("evaluate", 25, self.evaluate)

    def train_text(self) -> None:
        paths = {"model.vision": self.teacher / "vision", "data.vocabulary": self.corpus.clip_vocabulary}
        self.train("text", self.corpus.image_mixture(), paths)

    def train_codebook(self) -> None:
        text = self.workdir / "text"
        paths = {"teacher.text": text, "teacher.text_vocabulary": self.corpus.clip_vocabulary}
        self.train(
            "codebook", self.corpus.image_mixture(), {**self._tokenizer_paths(self.workdir / "qformer"), **paths}
        )

    def train_decoder(self) -> None:
        start = self.workdir / "data/decoder_start"
        teacher_files.make_stable_diffusion(start, self.teacher / "unclip", self.workdir / "text")
        paths = {"model.init": start, "source.tokenizer": self.workdir / "codebook"}
        self.train("decoder", self.corpus.image_mixture(), paths)

    def pretrain(self) -> None:
        paths = {"data.vocabulary": self.corpus.vocabulary, "model.code_vectors": self.workdir / "codebook"}
        self.train("pretrain_opt", self.corpus.language_mixture("pretrain_opt"), paths)


class TeacherTraining(WorldRecipe):
    """Train the networks that a quickstart starts from: from random weights, or further than an earlier teacher."""

    def steps(self) -> Iterator[Step]:
        yield Step("images", 60, self.build_images)
        yield Step("reader", 750, self.train_reader)
        yield Step("autoencoder", 700, self.train_autoencoder)
        yield Step("painter", 4000, self.train_painter)
        yield Step("pack", 5, self.pack)

    def train_reader(self) -> None:
        paths = {"model.init": Path(self.config.teacher)} if self.config.teacher else {}
        self.train("reader", self.corpus.image_mixture(), paths)

    def train_autoencoder(self) -> None:
        paths = {"source.vision": self.workdir / "reader"}
        if self.config.teacher:
            paths["model.init"] = Path(self.config.teacher) / "unclip"  # its UNet is kept for the painter
        self.train("autoencoder", self.corpus.image_mixture(), paths)

    def train_painter(self) -> None:
        paths = {"source.vision": self.workdir / "reader", "model.init": self.workdir / "autoencoder"}
        self.train("painter", self.corpus.image_mixture(), paths)

    def pack(self) -> None:
        teacher_files.pack(self.workdir, self.workdir / "teacher")
