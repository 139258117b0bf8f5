"""The data of the quickstart: descriptions of drawn samples, shards of them, vocabularies of their words."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from seed_jax.data.build import build
from seed_jax.data.build.encoding import Encoder
from seed_jax.data.build.settings import Settings
from seed_jax.data.sources import open_source
from seed_jax.data.sources.world import draw_unit, read_recipe
from seed_jax.data.templates import Phrases
from seed_jax.data.text import bert
from seed_jax.data.text.vocabulary import train_small
from seed_jax.data.world import TASKS, make_sample
from seed_jax.inference.image_tokenizer import ImageTokenizer, PictureEncoder

CAPTION_QUESTION = "Please describe this image in one short sentence."
_HELD_PICTURES, _EXAMPLES = 200, 12
_WORDS_FROM = 300  # samples of each task whose words make the vocabularies
_BERT_SIZE, _PIECES = 200, 512


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where the parts lie."""

    directory: Path

    @property
    def pictures(self) -> Path:
        return self.directory / "pictures"

    @property
    def held_pictures(self) -> Path:
        return self.directory / "held_pictures"

    @property
    def examples(self) -> Path:
        """A few of the held pictures as PNG files, to try commands on."""
        return self.directory / "examples"

    @property
    def bert_vocabulary(self) -> Path:
        return self.directory / bert.FILE

    @property
    def vocabulary(self) -> Path:
        return self.directory / "vocabulary"

    def coded(self, task: str) -> Path:
        return self.directory / "coded" / task

    def parts(self, stage: str) -> tuple[dict[str, Any], ...]:
        """Return `data.parts` of a language stage."""

        def part(name: str, task: str, weight: float, **more: Any) -> dict[str, Any]:
            own = {"question": more.pop("question")} if "question" in more else {}
            params = {"max_length": 256, **more}
            return {"path": str(self.coded(name)), "task": task, "weight": weight, "params": params, **own}

        if stage == "pretrain":
            return (
                part("captions", "pretrain.image_text_pair", 4.0),
                part("edits", "pretrain.edit", 1.0),
                part("stories", "pretrain.interleaved", 0.5),
            )
        return (
            part("questions", "sft.conversation", 1.5),
            part("captions", "sft.qa", 2.5, reverse_ratio=0.5, question=CAPTION_QUESTION),
            part("edits", "sft.edit", 2.0),
            part("differences", "sft.difference", 0.4),
            part("stories", "sft.interleaved", 0.2),
        )


def draw_pictures(corpus: Corpus, config: ml_collections.ConfigDict) -> None:
    """Make the shards of captioned pictures, those that are held back, and both vocabularies."""
    shown = _describe(corpus, "captions", config, task="captions", count=config.world.captions, held=False)
    held = _describe(corpus, "held", config, task="captions", count=_HELD_PICTURES, held=True)
    described = [shown]
    if config.world.crowded:
        crowded = {"task": "captions", "count": config.world.crowded, "things": 3}
        described.append(_describe(corpus, "crowded", config, **crowded))
    for sources, out in ((described, corpus.pictures), ([held], corpus.held_pictures)):
        build.build(open_source("world", sources), out, settings=Settings(progress=False))
    corpus.examples.mkdir(exist_ok=True)
    asked = read_recipe(held)
    for number in range(_EXAMPLES):
        (corpus.examples / f"{number:02}.png").write_bytes(draw_unit(asked, number, "").items[0])
    texts = _texts(config.seed)
    bert.train_small(texts, _BERT_SIZE).save(corpus.bert_vocabulary)


def tokenise(corpus: Corpus, config: ml_collections.ConfigDict, tokenizer: Path) -> None:
    """Make the language model's vocabulary and shards: `seed-jax data build --model`, task by task."""
    loaded = ImageTokenizer.load(tokenizer, batch_size=64)
    train_small(_texts(config.seed), corpus.vocabulary, vocab_size=_PIECES, num_codes=loaded.config.num_codes)
    encoder: Encoder = PictureEncoder(loaded)
    for task in TASKS:
        described = _describe(corpus, task, config, task=task, count=config.world[task], held=False)
        source = open_source("world", [described])
        build.build(source, corpus.coded(task), encoder=encoder, settings=Settings(progress=False))


def _describe(corpus: Corpus, name: str, config: ml_collections.ConfigDict, **recipe: Any) -> Path:
    path = corpus.directory / f"{name}.world.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": config.seed, "side": config.world.side, **recipe}), encoding="utf-8")
    return path


def _texts(seed: int) -> list[str]:
    samples = [make_sample(task, seed, number) for task in TASKS for number in range(_WORDS_FROM)]
    said = [item for sample in samples for item in sample.items if isinstance(item, str)]
    frame = [f"USER: {CAPTION_QUESTION}\nASSISTANT: {text}." for text in said]
    rng, phrases = np.random.default_rng(seed), Phrases.load()
    said += 10 * [*phrases.requests, *phrases.replies, *phrases.edit_replies, *phrases.sentences]
    return [*said, *(frame[i] for i in rng.permutation(len(frame))[: len(frame) // 3])]
