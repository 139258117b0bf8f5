"""Demo data for the `:tiny` configs: photographs that come with scikit-image, and captions written for them.

`prepare_language_demo` and `prepare_pairs_demo` make what users bring for real runs (images with captions,
vocabularies, an image tokenizer, shards) through the functions behind the commands. The image tokenizer is untrained:
its codes are a fixed hash of an image, enough to exercise every part together but not to show what SEED can do.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.data.build import build
from seed_jax.data.build.options import BuildOptions
from seed_jax.data.sources import open_source
from seed_jax.data.text import bert
from seed_jax.data.text.vocabulary import train_small
from seed_jax.errors import UserError
from seed_jax.files import new_directory, write_text
from seed_jax.inference.chat.prompts import BASE_STYLE, SEED1_STYLE, USER, Message, build_prompt
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment, Segment, TextSegment
from seed_jax.inference.image_tokenizer import BatchImageEncoder, ImageTokenizer
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig

# File in skimage.data -> captions. All are photographs in the public domain or under CC0.
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
_IMAGES, _HELD_OUT = "images", "held_out"  # directories of the crops
_CROPS_PER_PHOTO = 6  # to train on; one more is held out
_IMAGE_SIZE = 128  # pixels
_LLAMA_VOCABULARY_SIZE, _BERT_VOCABULARY_SIZE = 400, 160
_NUM_SHOWN = 3
_MAX_NEW_TOKENS = 48


@dataclasses.dataclass(frozen=True)
class LanguageDemo:
    """Paths of the demo data for the stages of the language model.

    Attributes:
        directory: contains everything.
    """

    directory: Path

    @property
    def vocabulary(self) -> Path:
        return self.directory / "vocabulary"

    @property
    def image_tokenizer(self) -> Path:
        return self.directory / "image_tokenizer"

    @property
    def held_out_images(self) -> Path:
        return self.directory / _HELD_OUT

    def shards(self, name: str) -> Path:
        """Shards of "captions" or "questions"."""
        return self.directory / "shards" / name

    def mixture(self, stage: str) -> list[dict[str, Any]]:
        """Return `data.mixture`: captions for pre-training, questions with answers for instruction tuning."""
        if stage == "pretrain_opt":
            return [
                {"path": str(self.shards("captions")), "task": task, "weight": 1.0, "params": {"max_length": 128}}
                for task in ("seed1.caption", "seed1.image")
            ]
        name, task = ("questions", "sft.qa") if stage == "sft" else ("captions", "pretrain.image_text_pair")
        # Half of the dialogues ask for an image instead of about one.
        params = {"max_length": 128, "reverse_ratio": 0.5}
        return [{"path": str(self.shards(name)), "task": task, "weight": 1.0, "params": params}]

    def held_out_captions(self) -> list[dict[str, str]]:
        """Return {"image": file name, "caption": text} of each held-out image."""
        lines = (self.held_out_images / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@dataclasses.dataclass(frozen=True)
class PairsDemo:
    """Paths of the demo data for the stages of the image tokenizer.

    Attributes:
        directory: contains everything.
    """

    directory: Path

    @property
    def vocabulary(self) -> Path:
        return self.directory / bert.FILE

    @property
    def shards(self) -> Path:
        return self.directory / "shards"

    @property
    def held_out(self) -> Path:
        return self.directory / "held_out_shards"


def prepare_language_demo(directory: Path, seed: int) -> LanguageDemo:
    """Make the data for a language model in `directory`, unless an earlier run did.

    Args:
        directory: appears when it is complete.
        seed: of the image tokenizer's weights.

    Raises:
        UserError: scikit-image is not installed.
    """
    if not directory.exists():
        logging.info("Making the demo data in %s.", directory)
        with new_directory(directory) as temporary:
            demo = LanguageDemo(temporary)
            write_images(temporary)
            captions = _all_captions()
            dialogues = [f"USER: {QUESTION}\nASSISTANT: {caption}." for caption in captions]
            num_codes = SeedTokenizerConfig.tiny().num_codes
            train_small(
                [*captions, *dialogues], demo.vocabulary, vocab_size=_LLAMA_VOCABULARY_SIZE, num_codes=num_codes
            )
            _save_image_tokenizer(demo.image_tokenizer, temporary / _IMAGES, seed)
            encoder = BatchImageEncoder(ImageTokenizer.load(demo.image_tokenizer))
            for name in ("captions", "questions"):
                _build_shards(temporary / _IMAGES / f"{name}.jsonl", demo.shards(name), encoder)
    return LanguageDemo(directory)


def prepare_pairs_demo(directory: Path) -> PairsDemo:
    """Make the data for an image tokenizer in `directory`, unless an earlier run did.

    Args:
        directory: appears when it is complete.

    Raises:
        UserError: scikit-image is not installed.
    """
    if not directory.exists():
        logging.info("Making the demo data in %s.", directory)
        with new_directory(directory) as temporary:
            demo = PairsDemo(temporary)
            write_images(temporary)
            bert.train_small(_all_captions(), _BERT_VOCABULARY_SIZE).save(demo.vocabulary)
            _build_shards(temporary / _IMAGES, demo.shards)
            _build_shards(temporary / _HELD_OUT, demo.held_out)
    return PairsDemo(directory)


def show_samples(demo: LanguageDemo, stage: str, workdir: Path) -> None:
    """Print what a trained model answers to held-out images and to a caption.

    Args:
        demo: the data that it was trained on.
        stage: "sft" asks in the chat format that instruction tuning teaches, others continue a plain sequence.
        workdir: of the training; its newest checkpoint is loaded.
    """
    pairs = demo.held_out_captions()[:_NUM_SHOWN]
    paths = [demo.held_out_images / pair["image"] for pair in pairs]
    tokenizer = ImageTokenizer.load(demo.image_tokenizer, batch_size=_NUM_SHOWN)
    codes = tokenizer.encode([images.load(path) for path in paths])
    generator = Generator.load(workdir)
    style, question = ("vicuna", [TextSegment(QUESTION)]) if stage == "sft" else (BASE_STYLE, [])
    if stage == "pretrain_opt":
        style = SEED1_STYLE
    prompts = [[ImageSegment(tuple(map(int, row))), *question] for row in codes]
    answers = _generate(generator, prompts, style, "text")
    print("\nCaptions of held-out images (a model of this size memorizes; do not expect sense):")
    for path, pair, answer in zip(paths, pairs, answers, strict=True):
        text = " ".join(segment.text for segment in answer if isinstance(segment, TextSegment))
        print(f"  {path}\n    expected:  {pair['caption']}\n    generated: {text}")
    caption = pairs[0]["caption"]
    (answer,) = _generate(generator, [[TextSegment(caption)]], style, "image")
    generated = [code for segment in answer if isinstance(segment, ImageSegment) for code in segment.codes]
    print(f"\n{len(generated)} codes for the caption {caption!r}:\n  {' '.join(map(str, generated))}")


def _generate(
    generator: Generator, prompts: Sequence[Sequence[Segment]], style: str, mode: str
) -> list[tuple[Segment, ...]]:
    ids = [build_prompt([Message(USER, prompt)], style, generator.vocabulary) for prompt in prompts]
    answers = generator.generate(ids, SamplingParams(mode=mode, max_new_tokens=_MAX_NEW_TOKENS))
    return [answer.segments for answer in answers]


def _all_captions() -> list[str]:
    return [caption for captions in CAPTIONS.values() for caption in captions]


def write_images(directory: Path) -> None:
    """Write crops of the photographs with captions.

    `images/` holds PNG files, captions.jsonl and questions.jsonl; `held_out/` other crops with captions.jsonl.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError:
        raise UserError(
            "The :tiny configs use photographs that come with scikit-image, which is not installed: "
            "pip install 'seed-jax[demo]'."
        ) from None
    photographs = Path(str(skimage.data.__file__)).parent
    rng = np.random.default_rng(0)
    pairs: dict[str, list[dict[str, str]]] = {_IMAGES: [], _HELD_OUT: []}
    for name in pairs:
        (directory / name).mkdir(parents=True)
    for file, captions in CAPTIONS.items():
        photograph = images.load(photographs / file)
        for index in range(_CROPS_PER_PHOTO + 1):
            name = _HELD_OUT if index == _CROPS_PER_PHOTO else _IMAGES
            target = f"{Path(file).stem}_{index}.png"
            _random_crop(photograph, rng).save(directory / name / target)
            pairs[name].append({"image": target, "caption": captions[index % len(captions)]})
    for name, rows in pairs.items():
        _write_lines(directory / name / "captions.jsonl", rows)
    # Keys beside image and caption become metadata of the record, where the template finds the question.
    questions = [{**row, "question": QUESTION} for row in pairs[_IMAGES]]
    _write_lines(directory / _IMAGES / "questions.jsonl", questions)


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _random_crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop a square of 80 to 100 % of the shorter side."""
    side = int(min(photograph.size) * rng.uniform(0.8, 1.0))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in photograph.size)
    square = photograph.crop((left, top, left + side, top + side))
    return square.resize((_IMAGE_SIZE, _IMAGE_SIZE), Image.Resampling.BICUBIC)


def _save_image_tokenizer(out: Path, images_directory: Path, seed: int) -> None:
    """Save an image tokenizer with random weights; its codebook is sampled from latents, so that codes differ."""
    config = SeedTokenizerConfig.tiny()
    model = SeedTokenizer(config)
    paths = sorted(images_directory.glob("*.png"))
    batch = jnp.stack([images.preprocess(images.load(path), config.image_size) for path in paths])
    variables = sharding.unbox(sharding.jit_init(model.init)(jax.random.key(seed), batch[:1]))

    def encode(variables: Any, batch: jax.Array) -> jax.Array:
        output: Any = model.apply(variables, batch, method="encode")
        return output.prequant

    latents = np.asarray(jax.jit(encode)(variables, batch))
    vectors = latents.reshape(-1, latents.shape[-1])
    chosen = np.random.default_rng(seed).choice(len(vectors), config.num_codes, replace=False)
    params = {**variables["params"], "codebook": jnp.asarray(vectors[chosen])}
    provenance = {"made_by": "the demo data; untrained"}
    model_dir.save(out, ModelKind.IMAGE_TOKENIZER, {"sizes": config.to_dict()}, params, provenance=provenance)


def _build_shards(source: Path, out: Path, encoder: BatchImageEncoder | None = None) -> None:
    build.build(open_source("folder", [source]), out, encoder=encoder, options=BuildOptions(progress=False))
