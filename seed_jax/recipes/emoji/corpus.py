"""The data of the emoji recipe: lists of captioned images, their shards, and vocabularies of their names.

The lists are what `seed-jax data build --source captions --from LIST --images DIR` reads, so that images of another
origin take the same way.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.data.batches.augment import Augmentation, augment
from seed_jax.data.build import build
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.sources import open_source
from seed_jax.data.templates import Phrases
from seed_jax.data.text import bert
from seed_jax.data.text.vocabulary import train_small
from seed_jax.files import write_text
from seed_jax.inference.image_tokenizer import BatchImageEncoder, ImageTokenizer
from seed_jax.recipes.emoji.config import EmojiConfig
from seed_jax.recipes.emoji.packages import FLAGS, GROUPS, SIDE, SKIN_TONES, SYMBOLS, EmojiSet, Symbol

QUESTION = "What does this emoji show?"
TRAIN, TEST, TOKENIZED = "train", "test", "tokenized"
COPIES = "copies"
CROPS = Augmentation(scale=(0.7, 1.0), flip=0.0)  # of the copies; arrows must not be mirrored
# Flags and skin tones are as many as everything else, and much alike.
_WEIGHTS = {SYMBOLS: 1.0, FLAGS: 0.15, SKIN_TONES: 0.3}
_MAX_LENGTH = 128  # tokens of a sample


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Paths of the data.

    Attributes:
        directory: contains everything else.
    """

    directory: Path

    @property
    def bert_vocabulary(self) -> Path:
        """Vocabulary of the Q-Former."""
        return self.directory / bert.FILE

    @property
    def vocabulary(self) -> Path:
        """Directory of the language model's vocabulary."""
        return self.directory / "vocabulary"

    @property
    def copies(self) -> Path:
        """Cropped copies of the training images."""
        return self.directory / COPIES

    def shards(self, part: str, group: str) -> Path:
        """Return the shards of `TRAIN` or `TEST` (images), or `TOKENIZED` (codes of training images), of a group."""
        return self.directory / part / group

    def list_file(self, part: str, group: str) -> Path:
        """Return the list that shards are built from."""
        return self.directory / "lists" / f"{part}_{group}.jsonl"

    def _groups(self) -> list[str]:
        return [group for group in GROUPS if self.shards(TRAIN, group).is_dir()]

    def image_mixture(self) -> list[dict[str, Any]]:
        """Return `data.mixture` of the tokenizer's and the decoder's stages."""
        return [{"path": str(self.shards(TRAIN, group)), "weight": _WEIGHTS[group]} for group in self._groups()]

    def language_mixture(self) -> list[dict[str, Any]]:
        """Return `data.mixture` of the language model: names of images, and images of names."""
        params = {"max_length": _MAX_LENGTH}
        components = []
        for group in self._groups():
            shards = str(self.shards(TOKENIZED, group))
            copies = self.shards(TOKENIZED, COPIES)
            named = [shards, str(copies)] if group == SYMBOLS and copies.is_dir() else shards
            common = {"task": "sft.qa", "weight": _WEIGHTS[group]}
            components += [
                {**common, "path": named, "question": QUESTION, "params": {**params, "reverse_ratio": 0.0}},
                {**common, "path": shards, "question": QUESTION, "params": {**params, "reverse_ratio": -1.0}},
            ]
        return components


def build_images(corpus: Corpus, emoji: EmojiSet, config: EmojiConfig) -> None:
    """Write the lists and build the shards of images, and train the vocabularies."""
    packages = config.packages
    root = packages.directory
    for group in GROUPS:
        symbols = emoji.of_group(group)
        if not symbols:
            continue
        trained = [(studio, symbol) for studio in packages.train for symbol in symbols]
        tested = [(packages.test, symbol) for symbol in symbols]
        # Stage I trains on all captions; the language model and the measurements use names.
        for part, pairs, all_captions in ((TRAIN, trained, True), (TEST, tested, False), (TOKENIZED, trained, False)):
            lines = [
                {
                    **_entry(emoji, root, studio, symbol),
                    "captions": list(symbol.captions) if all_captions else [symbol.name],
                }
                for studio, symbol in pairs
            ]
            _write_list(corpus.list_file(part, group), lines)
            if part != TOKENIZED:  # built once the image tokenizer is trained
                _build(corpus.list_file(part, group), root, corpus.shards(part, group))
    captions = [caption for symbol in emoji.symbols for caption in symbol.captions]
    bert.train_small(captions, packages.words).save(corpus.bert_vocabulary)


def build_copies(corpus: Corpus, emoji: EmojiSet, config: EmojiConfig) -> None:
    """Write cropped copies of the training images, for the language model."""
    if not config.packages.copies:
        return
    rng = np.random.default_rng(config.seed)
    lines = []
    for studio in config.packages.train:
        (corpus.copies / studio).mkdir(parents=True, exist_ok=True)
        for symbol in emoji.of_group(SYMBOLS):
            image = images.load(emoji.image(studio, symbol))
            for number in range(config.packages.copies):
                name = f"{studio}/{Path(symbol.file).stem}_{number}.png"
                Image.fromarray(augment(image, SIDE, CROPS, rng)).save(corpus.copies / name, compress_level=1)
                lines.append({"image": name, "captions": [symbol.name]})
    _write_list(corpus.list_file(TOKENIZED, COPIES), lines)


def build_language_shards(corpus: Corpus, emoji: EmojiSet, config: EmojiConfig, tokenizer: Path) -> None:
    """Make the language model's vocabulary, and its shards of codes and names."""
    loaded = ImageTokenizer.load(tokenizer, batch_size=64)
    names = [symbol.name for symbol in emoji.symbols]
    train_small(_texts(names), corpus.vocabulary, config.packages.pieces, loaded.config.num_codes)
    encoder = BatchImageEncoder(loaded)
    for group in GROUPS:
        if emoji.of_group(group):
            root = config.packages.directory
            _build(corpus.list_file(TOKENIZED, group), root, corpus.shards(TOKENIZED, group), encoder)
    if config.packages.copies:
        build_copies(corpus, emoji, config)
        shards = corpus.shards(TOKENIZED, COPIES)
        _build(corpus.list_file(TOKENIZED, COPIES), str(corpus.copies), shards, encoder)


def _texts(names: Sequence[str]) -> list[str]:
    """Return names alone, in dialogues and in requests to draw them."""
    phrases = Phrases.load()
    dialogues = [f"USER: {QUESTION}\nASSISTANT: {name}" for name in names[:: max(1, len(names) // 100)]]
    return [*names, *dialogues, *5 * [*phrases.requests, *phrases.replies]]


def _entry(emoji: EmojiSet, root: str, studio: str, symbol: Symbol) -> dict[str, Any]:
    path = emoji.image(studio, symbol).relative_to(root).as_posix()
    return {"image": path, "studio": studio, "category": symbol.category}


def _write_list(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _build(list_file: Path, images_root: str, out: Path, encoder: BatchImageEncoder | None = None) -> None:
    source = open_source("captions", [list_file], images=images_root)
    build.build(source, out, encoder=encoder, options=BuildOptions(progress=False))
