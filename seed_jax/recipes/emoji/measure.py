"""Measure trained models on the emoji of a studio that no training saw.

The claims of SEED that are measured: images of one meaning get like codes (agreement between studios), the codes hold
the meaning (retrieval, names), a language model can write them (drawings), and they say more about it than codes of
pixels do (linear probe).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seed_jax import images
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.evaluation.fingerprint import fingerprint
from seed_jax.evaluation.report.files import write_report
from seed_jax.evaluation.retrieval import ImageTextEncoder, PairEmbeddings, recall
from seed_jax.evaluation.runner import RunOptions, TaskRun, run_task
from seed_jax.evaluation.task import DataOptions
from seed_jax.files import atomic_path
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.recipes.emoji.code_metrics import ProbeData, agreement, probe_accuracy
from seed_jax.recipes.emoji.config import EmojiConfig
from seed_jax.recipes.emoji.corpus import Corpus
from seed_jax.recipes.emoji.packages import GROUPS, SYMBOLS, EmojiSet, Symbol
from seed_jax.recipes.emoji.pixel_codes import Codes, Images, kmeans_codes, vqvae_codes
from seed_jax.recipes.emoji.tasks import Judge, Models, embed_images, make_tasks
from seed_jax.recipes.pipeline import Pipeline
from seed_jax.train.config.schema import parse
from seed_jax.train.config.tokenizer import PairDataConfig
from seed_jax.train.stages.pair_data import image_batches, make_pair_reader, mixture_components

DIRECTORY = "evaluation"  # of the workdir
SEED_CODES, KMEANS, VQVAE = "seed", "kmeans", "vqvae"
TOKENIZERS = (SEED_CODES, KMEANS, VQVAE)
_PIXEL_CODES = "pixel_codes.npz"
_FOLDS = 5  # of symbols: one to choose the probe's penalty on, one to measure, three to train on


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Results.

    Attributes:
        numbers: name -> fraction, the content of `results.json`.
        runs: of the tasks.
        codes: group -> codes of the test studio's images.
    """

    numbers: dict[str, float]
    runs: list[TaskRun]
    codes: dict[str, Codes]


def measure_tokenizer(config: EmojiConfig, emoji: EmojiSet, workdir: Path) -> dict[str, float]:
    """Measure the codes: agreement, probe and retrieval."""
    return {**measure_codes(config, emoji, workdir), **measure_retrieval(config, emoji, workdir)}


def measure(config: EmojiConfig, emoji: EmojiSet, workdir: Path, code_numbers: dict[str, float]) -> Measurements:
    """Measure the models in a workdir, or what remains to be measured.

    Args:
        config: options of the recipe.
        emoji: the images.
        workdir: of the recipe.
        code_numbers: result of `measure_tokenizer`.
    """
    test, options = config.packages.test, config.evaluate
    groups = [group for group in GROUPS if emoji.of_group(group)]
    pipeline = functools.cache(lambda: Pipeline.load(workdir, _image_size(workdir), options.batch, workdir / "vision"))

    @functools.cache
    def open_models() -> Models:
        judges = {
            group: Judge(symbols, embed_images(pipeline(), [emoji.image(test, symbol) for symbol in symbols]))
            for group in groups
            for symbols in (emoji.of_group(group),)
        }
        return Models(pipeline(), judges)

    numbers = dict(code_numbers)
    description = {name: fingerprint(workdir / name) for name in ("codebook", "decoder", "sft")}
    runs: list[TaskRun] = []
    for task in make_tasks(emoji, test, groups, options.names, options.drawings, config.packages.train[-1]):
        settings = RunOptions(options.batch)
        directory = workdir / DIRECTORY / task.name
        run = run_task(task, DataOptions(workdir), directory, settings, description, open_models)
        assert run is not None  # there is one shard
        runs.append(run)
        numbers |= {f"{task.name}_{name}": value / 100 for name, value in run.scores.metrics.items()}
    numbers |= measure_judge(config, emoji, open_models())
    write_report(workdir / DIRECTORY, runs)
    tokenizer = pipeline().tokenizer
    codes = {
        group: tokenizer.encode([emoji.image(test, symbol) for symbol in emoji.of_group(group)]) for group in groups
    }
    return Measurements(numbers, runs, codes)


def measure_codes(config: EmojiConfig, emoji: EmojiSet, workdir: Path) -> dict[str, float]:
    """Compare the codes with those of pixels: agreement between studios, and a linear probe of the category."""
    packages, numbers = config.packages, {}
    tokenizer = ImageTokenizer.load(workdir / "codebook", batch_size=64)
    stored = np.load(workdir / _PIXEL_CODES)
    for group in GROUPS:
        symbols = emoji.of_group(group)
        if len(symbols) < 2:
            continue
        for kind in TOKENIZERS:
            codes = {
                studio: tokenizer.encode_pixels(_pixels(emoji, studio, symbols, tokenizer.config.image_size))
                if kind == SEED_CODES
                else stored[f"{kind}/{studio}/{group}"]
                for studio in (*packages.train, packages.test)
            }
            measured = agreement(codes[packages.test], [codes[studio] for studio in packages.train])
            values = dataclasses.asdict(measured)
            numbers |= {f"agreement_{group}_{kind}_{name}": value for name, value in values.items()}
            if group == SYMBOLS:
                numbers |= _probe(kind, codes, symbols, packages.train, packages.test)
            if kind == SEED_CODES and group == SYMBOLS:
                numbers["codes_used"] = len(np.unique(codes[packages.test])) / tokenizer.config.num_codes
    return numbers


def _probe(
    kind: str, codes: dict[str, Codes], symbols: Sequence[Symbol], train: Sequence[str], test: str
) -> dict[str, float]:
    """Probe the category on the test studio's images, of symbols that the probe has seen and of others."""
    categories = sorted({symbol.category for symbol in symbols})
    labels = np.array([categories.index(symbol.category) for symbol in symbols])
    fold = np.arange(len(symbols)) % _FOLDS

    def part(studios: Sequence[str], chosen: np.ndarray) -> ProbeData:
        return ProbeData(
            np.concatenate([codes[studio][chosen] for studio in studios]), np.tile(labels[chosen], len(studios))
        )

    new, validation = fold == 0, fold == 1
    tests = [part([test], new), part([test], ~new)]
    accuracies = probe_accuracy(part(train, fold > 1), part(train, validation), tests)
    largest = float(np.bincount(labels[new], minlength=len(categories)).max() / new.sum())
    return {
        f"probe_{kind}_new_symbols": accuracies[0],
        f"probe_{kind}_known_symbols": accuracies[1],
        "probe_largest_category": largest,
    }


def measure_retrieval(config: EmojiConfig, emoji: EmojiSet, workdir: Path) -> dict[str, float]:
    """Return recalls of names and images, by causal embeddings and through codes, among all symbols of each group."""
    encoder, numbers = ImageTextEncoder(workdir / "codebook"), {}
    for group in GROUPS:
        symbols = emoji.of_group(group)
        if not symbols:
            continue
        loaded = [images.load(emoji.image(config.packages.test, symbol)) for symbol in symbols]
        embeddings, from_codes = encoder.embed_images(loaded)
        texts = encoder.embed_texts([symbol.name for symbol in symbols])
        for name, vectors in (("retrieval", embeddings), ("code_retrieval", from_codes)):
            recalls = recall(PairEmbeddings(vectors, texts, np.arange(len(symbols))))
            numbers |= {f"{name}_{group}_{metric}": value for metric, value in recalls.items()}
    return numbers


def measure_judge(config: EmojiConfig, emoji: EmojiSet, models: Models) -> dict[str, float]:
    """Return how often the judge of drawings recognizes images that the training studios have drawn themselves."""
    numbers = {}
    for group, judge in models.judges.items():
        right = []
        for studio in config.packages.train:
            vectors = embed_images(models.pipeline, [emoji.image(studio, symbol) for symbol in judge.symbols])
            right.append(np.mean(np.array(judge.nearest(vectors)) == np.arange(len(vectors))))
        numbers[f"judge_{group}_right_of_all"] = float(np.mean(right))
    return numbers


def write_pixel_codes(config: EmojiConfig, emoji: EmojiSet, corpus: Corpus, workdir: Path) -> None:
    """Train the codes of pixels and store those of all images."""
    tokenizer = ImageTokenizer.load(workdir / "codebook").config
    size, packages = tokenizer.image_size, config.packages
    pixels = {
        f"{studio}/{group}": _pixels(emoji, studio, emoji.of_group(group), size)
        for studio in (*packages.train, packages.test)
        for group in GROUPS
        if emoji.of_group(group)
    }
    train = np.concatenate([pixels[f"{studio}/{SYMBOLS}"] for studio in packages.train])
    options = config.pixel_codes
    clustered = kmeans_codes(train, pixels, tokenizer.num_codes, options)
    stages = [config.stages[name] for name in ("image_text", "codebook")]
    steps = options.steps or sum(s["steps"] * s["data"]["batch_size"] for s in stages) // options.batch_size
    as_stage_1 = parse(PairDataConfig, {**stages[0]["data"], "mixture": corpus.image_mixture()})
    data = dataclasses.replace(as_stage_1, batch_size=options.batch_size)
    reader = make_pair_reader(data, size, BertVocabulary.load(corpus.bert_vocabulary))
    batches = image_batches(data, mixture_components(data), reader, config.seed, list(range(options.batch_size)))
    sizes = (tokenizer.vit.blocks, tokenizer.num_codes, tokenizer.code_width)
    result = vqvae_codes(batches, pixels, sizes, max(1, steps), options, config.seed)
    batches.close()
    arrays = {f"{KMEANS}/{name}": codes for name, codes in clustered.items()}
    arrays |= {f"{VQVAE}/{name}": codes for name, codes in result.codes.items()}
    with atomic_path(workdir / _PIXEL_CODES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def _pixels(emoji: EmojiSet, studio: str, symbols: Sequence[Symbol], size: int) -> Images:
    return np.stack([images.resize(images.load(emoji.image(studio, symbol)), size) for symbol in symbols])


def _image_size(workdir: Path) -> int:
    return ImageTokenizer.load(workdir / "codebook").config.image_size
