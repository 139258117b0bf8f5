"""The data of the quickstart: shards of the synthetic world, and vocabularies of its words."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.build import build
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.sources import open_source
from seed_jax.data.sources.world import make_raw_sample, read_description
from seed_jax.data.templates import Phrases
from seed_jax.data.text import bert
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.data.text.vocabulary import train_small
from seed_jax.data.world import TASKS, make_sample
from seed_jax.files import write_bytes, write_json
from seed_jax.inference.image_tokenizer import BatchImageEncoder, ImageTokenizer
from seed_jax.recipes.quickstart.config import QuickstartConfig

CAPTION_QUESTION = "Please describe this image in one short sentence."
_NUM_HELD_OUT, _NUM_EXAMPLES = 200, 12
_VOCABULARY_SAMPLES = 300  # samples of each task whose texts the vocabularies are trained on
_BERT_SIZE, _PIECES = 200, 512  # vocabulary sizes
_MAX_LENGTH = 256  # tokens of a sample


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Paths of the data.

    Attributes:
        directory: contains everything else.
    """

    directory: Path

    @property
    def images(self) -> Path:
        """Shards of captioned images."""
        return self.directory / "images"

    @property
    def held_out_images(self) -> Path:
        """Shards of captioned images with held-out combinations."""
        return self.directory / "held_out_images"

    @property
    def examples(self) -> Path:
        """A few of the held-out images as PNG files, to try commands on."""
        return self.directory / "examples"

    @property
    def bert_vocabulary(self) -> Path:
        """Vocabulary of the Q-Former."""
        return self.directory / bert.FILE

    @property
    def clip_vocabulary(self) -> Path:
        """Directory of the vocabulary of SEED-1's text encoder."""
        return self.directory / "clip_vocabulary"

    @property
    def vocabulary(self) -> Path:
        """Directory of the language model's vocabulary."""
        return self.directory / "vocabulary"

    def tokenized(self, task: str) -> Path:
        """Shards of a task whose images are tokenized."""
        return self.directory / "tokenized" / task

    def image_mixture(self) -> list[dict[str, Any]]:
        """Return `data.mixture` of the tokenizer's and the decoder's stages."""
        return [{"path": str(self.images), "weight": 1.0}]

    def language_mixture(self, stage: str) -> list[dict[str, Any]]:
        """Return `data.mixture` of a language stage, "pretrain", "sft" or "pretrain_opt"."""
        if stage == "pretrain_opt":
            return [self._component("captions", task, 1.0) for task in ("seed1.caption", "seed1.image")]
        if stage == "pretrain":
            return [
                self._component("captions", "pretrain.image_text_pair", 4.0),
                self._component("edits", "pretrain.edit", 1.0),
                self._component("stories", "pretrain.interleaved", 0.5),
            ]
        captions = self._component("captions", "sft.qa", 2.5, reverse_ratio=0.5)
        return [
            self._component("questions", "sft.conversation", 1.5),
            {**captions, "question": CAPTION_QUESTION},
            self._component("edits", "sft.edit", 2.0),
            self._component("differences", "sft.difference", 0.4),
            self._component("stories", "sft.interleaved", 0.2),
        ]

    def _component(self, name: str, task: str, weight: float, **params: Any) -> dict[str, Any]:
        params = {"max_length": _MAX_LENGTH, **params}
        return {"path": str(self.tokenized(name)), "task": task, "weight": weight, "params": params}

    def write_description(self, name: str, config: QuickstartConfig, **keys: Any) -> Path:
        """Write a description for `seed-jax data build --source world` and return its path."""
        path = self.directory / f"{name}.world.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"seed": config.seed, "side": config.world.side, **keys})
        return path


def build_image_shards(corpus: Corpus, config: QuickstartConfig) -> None:
    """Make the shards of captioned images, the held-out ones, the examples and the Q-Former's vocabulary."""
    descriptions = [corpus.write_description("captions", config, task="captions", count=config.world.captions)]
    if config.world.crowded:
        crowded = {"task": "captions", "count": config.world.crowded, "num_objects": 3}
        descriptions.append(corpus.write_description("crowded", config, **crowded))
    held_out = corpus.write_description("held_out", config, task="captions", count=_NUM_HELD_OUT, held_out=True)
    _build(descriptions, corpus.images)
    _build([held_out], corpus.held_out_images)
    corpus.examples.mkdir(exist_ok=True)
    description = read_description(held_out)
    for index in range(_NUM_EXAMPLES):
        image = make_raw_sample(description, index, "").items[0]
        assert isinstance(image, bytes)
        write_bytes(corpus.examples / f"{index:02}.png", image)
    texts = _vocabulary_texts(config.seed)
    bert.train_small(texts, _BERT_SIZE).save(corpus.bert_vocabulary)
    if config.is_seed1:
        corpus.clip_vocabulary.mkdir(exist_ok=True)
        ClipVocabulary.train_small(texts).save(corpus.clip_vocabulary)


def build_language_shards(corpus: Corpus, config: QuickstartConfig, tokenizer: Path) -> None:
    """Make the language model's vocabulary, and its shards task by task, as `seed-jax data build --model` does."""
    loaded = ImageTokenizer.load(tokenizer, batch_size=64)
    texts = _vocabulary_texts(config.seed)
    train_small(texts, corpus.vocabulary, vocab_size=_PIECES, num_codes=loaded.config.num_codes)
    encoder = BatchImageEncoder(loaded)
    for task in ("captions",) if config.is_seed1 else TASKS:
        description = corpus.write_description(task, config, task=task, count=getattr(config.world, task))
        _build([description], corpus.tokenized(task), encoder)


def _build(descriptions: list[Path], out: Path, encoder: BatchImageEncoder | None = None) -> None:
    build.build(open_source("world", descriptions), out, encoder=encoder, options=BuildOptions(progress=False))


def _vocabulary_texts(seed: int) -> list[str]:
    """Return texts of all tasks, of the templates, and captions as dialogues."""
    samples = [make_sample(task, seed, index) for task in TASKS for index in range(_VOCABULARY_SAMPLES)]
    texts = [item for sample in samples for item in sample.items if isinstance(item, str)]
    dialogues = [f"USER: {CAPTION_QUESTION}\nASSISTANT: {text}." for text in texts]
    phrases = Phrases.load()
    texts += 10 * [*phrases.requests, *phrases.replies, *phrases.edit_replies, *phrases.sentences]
    order = np.random.default_rng(seed).permutation(len(dialogues))
    return [*texts, *(dialogues[index] for index in order[: len(dialogues) // 3])]
