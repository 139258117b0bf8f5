"""The embedded default data: photographs that come with scikit-image, captions written for them.

It makes, below a workdir, what a user would bring: pictures with captions, a vocabulary, an image tokenizer and shards,
through the ordinary commands' functions. The image tokenizer is untrained: its codes are a fixed hash of a picture,
enough to show every part work together, not to show what SEED can do.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.data.build import build
from seed_jax.data.build.settings import Settings
from seed_jax.data.sources import open_source
from seed_jax.data.text import bert
from seed_jax.data.text.vocabulary import train_small
from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import BASE, USER, Turn, build_prompt
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment
from seed_jax.inference.image_tokenizer import KIND, ImageTokenizer, PictureEncoder
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig

# File in skimage.data -> captions of it. All are photographs in the public domain or under CC0.
CAPTIONS = {
    "astronaut.png": ("an astronaut in an orange suit smiles", "a woman in a space suit before a flag"),
    "camera.png": ("a man with a camera on a tripod", "a photographer stands on the grass"),
    "chelsea.png": ("a tabby cat looks to the side", "the face of a striped cat"),
    "coffee.png": ("a cup of coffee on a saucer", "coffee and a spoon on a wooden table"),
    "coins.png": ("old coins laid out in rows", "greek coins on a dark ground"),
    "rocket.jpg": ("a rocket stands on the launch pad at night", "a rocket lit up before its launch"),
    "moon.png": ("craters on the surface of the moon", "the grey moon seen from above"),
    "hubble_deep_field.jpg": ("many galaxies in the dark sky", "distant galaxies seen by a telescope"),
    "grass.png": ("a lawn of short grass seen from above", "blades of grass"),
    "gravel.png": ("small stones lying on the ground", "a bed of gravel"),
    "brick.png": ("a wall of bricks", "rows of bricks in a wall"),
    "motorcycle_left.png": ("a motorcycle parked in a garage", "a motorbike between tools in a workshop"),
}
QUESTION = "What does the picture show?"
CROPS = 6  # of every photograph; one more is held back
PICTURE_SIZE = 128
VOCABULARY_SIZE = 400


@dataclasses.dataclass(frozen=True)
class Demo:
    """Where the parts of the embedded data lie."""

    directory: Path

    @property
    def vocabulary(self) -> Path:
        return self.directory / "vocabulary"

    @property
    def image_tokenizer(self) -> Path:
        return self.directory / "image_tokenizer"

    def parts(self, stage: str) -> list[dict[str, Any]]:
        """Return `data.parts` of a config: captions for pre-training, questions and answers for instruction tuning."""
        folder, task = ("questions", "sft.qa") if stage == "sft" else ("captions", "pretrain.image_text_pair")
        # Half of the questions ask for a picture instead of about one.
        params = {"max_length": 128, "reverse_ratio": 0.5}
        return [{"path": str(self.directory / "shards" / folder), "task": task, "weight": 1.0, "params": params}]

    def held(self) -> list[dict[str, str]]:
        """Return {"image", "caption"} of pictures that are not trained on."""
        text = (self.directory / "held" / "captions.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def prepare(directory: Path, seed: int) -> Demo:
    """Make the data in `directory`, or use what an earlier run left there whole."""
    demo = Demo(directory)
    if directory.exists():
        return demo
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    logging.info("Making the embedded data set in %s.", directory)
    draft = Demo(temporary)
    write_pictures(temporary)
    texts = [caption for several in CAPTIONS.values() for caption in several]
    texts += [f"USER: {QUESTION}\nASSISTANT: {caption}." for caption in texts]
    train_small(texts, draft.vocabulary, vocab_size=VOCABULARY_SIZE, num_codes=SeedTokenizerConfig.tiny().num_codes)
    _write_image_tokenizer(draft, seed)
    _write_shards(draft)
    temporary.rename(directory)
    return demo


def write_pictures(directory: Path) -> None:
    try:
        import skimage.data as photographs
    except ImportError:
        raise UserError(
            "The :tiny data are photographs that come with scikit-image, which is not installed: "
            "pip install 'seed-jax[demo]'."
        ) from None
    rng = np.random.default_rng(0)
    lines = {"pictures": [], "held": []}
    for folder in lines:
        (directory / folder).mkdir(parents=True)
    for name, captions in CAPTIONS.items():
        photograph = images.load(Path(photographs.__file__).parent / name)
        for crop in range(CROPS + 1):
            folder = "held" if crop == CROPS else "pictures"
            target = f"{Path(name).stem}_{crop}.png"
            _crop(photograph, rng).save(directory / folder / target)
            lines[folder].append({"image": target, "caption": captions[crop % len(captions)]})
    for folder, rows in lines.items():
        _write_lines(directory / folder / "captions.jsonl", rows)
    # A line's other keys are metadata of its record, where the template finds the question.
    _write_lines(
        directory / "pictures" / "questions.jsonl", [{**row, "question": QUESTION} for row in lines["pictures"]]
    )


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out a square of at least 80 % of the shorter side."""
    side = int(min(photograph.size) * rng.uniform(0.8, 1.0))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in photograph.size)
    square = photograph.crop((left, top, left + side, top + side))
    return square.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC)


def _write_image_tokenizer(demo: Demo, seed: int) -> None:
    """Write random weights, with a codebook drawn from the pictures' own vectors, so that their codes differ."""
    config = SeedTokenizerConfig.tiny()
    model = SeedTokenizer(config)
    paths = sorted((demo.directory / "pictures").glob("*.png"))
    batch = jnp.stack([images.preprocess(images.load(path), config.image_size) for path in paths])
    variables = sharding.unbox(jax.jit(model.init)(jax.random.key(seed), batch[:1]))
    latents = jax.jit(lambda v, x: model.apply(v, x, method="encode").prequant)(variables, batch)
    flat = np.asarray(latents).reshape(-1, latents.shape[-1])
    rows = np.random.default_rng(seed).choice(len(flat), config.num_codes, replace=False)
    params = {**variables["params"], "codebook": jnp.asarray(flat[rows])}
    provenance = {"made_by": "the embedded default data; untrained"}
    model_dir.save(demo.image_tokenizer, KIND, {"sizes": config.to_dict()}, params, provenance=provenance)


def _write_shards(demo: Demo) -> None:
    encoder = PictureEncoder(ImageTokenizer.load(demo.image_tokenizer))
    for name in ("captions", "questions"):
        source = open_source("folder", [demo.directory / "pictures" / f"{name}.jsonl"])
        build.build(source, demo.directory / "shards" / name, encoder=encoder, settings=Settings(progress=False))


PAIRS_VOCABULARY_SIZE = 160


@dataclasses.dataclass(frozen=True)
class DemoPairs:
    """Where the parts of the embedded data lie."""

    directory: Path

    @property
    def vocabulary(self) -> Path:
        return self.directory / bert.FILE

    @property
    def shards(self) -> Path:
        return self.directory / "shards"

    @property
    def held(self) -> Path:
        return self.directory / "held_shards"


def prepare_pairs(directory: Path) -> DemoPairs:
    """Make the data in `directory`, or use what an earlier run left there whole."""
    if directory.exists():
        return DemoPairs(directory)
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    logging.info("Making the embedded data set in %s.", directory)
    draft = DemoPairs(temporary)
    write_pictures(temporary)
    captions = [caption for several in CAPTIONS.values() for caption in several]
    bert.train_small(captions, PAIRS_VOCABULARY_SIZE).save(draft.vocabulary)
    for folder, shards in (("pictures", draft.shards), ("held", draft.held)):
        build.build(open_source("folder", [temporary / folder]), shards, settings=Settings(progress=False))
    temporary.rename(directory)
    return DemoPairs(directory)


PICTURES = 3
NEW_TOKENS = 48


def show(demo: Demo, stage: str, variables: dict[str, Any], workdir: Path) -> None:
    """Print answers of the model that `workdir` now holds to what it was not trained on."""
    del variables  # the newest checkpoint has them
    held = demo.held()[:PICTURES]
    tokenizer, generator = ImageTokenizer.load(demo.image_tokenizer, batch_size=PICTURES), Generator.load(workdir)
    folder = demo.directory / "held"
    codes = tokenizer.encode([images.load(folder / row["image"]) for row in held])
    # Instruction tuning teaches answers to questions in the chat format, pre-training the plain continuation.
    style, question = ("vicuna", [TextSegment(QUESTION)]) if stage == "sft" else (BASE, [])
    pictures = [[ImageSegment(tuple(map(int, row))), *question] for row in codes]
    answers = _answer(generator, pictures, style, "text")
    print("\nCaptions for pictures that were held back (this size learns by heart; do not expect sense):")
    for row, answer in zip(held, answers, strict=True):
        print(f"  {folder / row['image']}\n    meant: {row['caption']}\n    found: {_text(answer)}")
    caption = held[0]["caption"]
    (drawn,) = _answer(generator, [[TextSegment(caption)]], style, "image")
    print(f"\n32 codes for the caption {caption!r}:")
    print(
        "  " + " ".join(str(code) for segment in drawn if isinstance(segment, ImageSegment) for code in segment.codes)
    )


def _answer(generator: Generator, prompts: list[list[Segment]], style: str, mode: str) -> list[tuple[Segment, ...]]:
    ids = [build_prompt([Turn(USER, prompt)], style, generator.vocabulary) for prompt in prompts]
    return [found.segments for found in generator.generate(ids, max_new_tokens=NEW_TOKENS, mode=mode)]


def _text(segments: tuple[Segment, ...]) -> str:
    return " ".join(segment.text for segment in segments if isinstance(segment, TextSegment))
