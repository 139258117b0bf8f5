"""Show what a demonstration run has learnt: captions for held pictures, 32 codes for a held caption."""

from pathlib import Path
from typing import Any

from seed_jax import images
from seed_jax.inference.chat import BASE, USER, Turn, build_prompt
from seed_jax.inference.generate import Generator
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.segments import ImageSegment, Segment, TextSegment
from seed_jax.train.demo import QUESTION, Demo

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
