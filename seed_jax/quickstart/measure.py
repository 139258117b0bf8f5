"""Measure a trained chain on the drawn world, by programs that look at pixels and words.

Everything is asked about combinations that training never showed: describe, answer, draw, rebuild through the codes,
edit. A drawing is judged by what `world_pixels.read` finds in it, an answer by the words it has.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from jaxtyping import UInt8

from seed_jax.data.world import Scene, make_sample, wording
from seed_jax.inference.generation.segments import TextSegment
from seed_jax.quickstart import read_pixels
from seed_jax.quickstart.chain import SEED, Chain, Similarity, drawing_prompt, image_segment
from seed_jax.quickstart.corpus import CAPTION_QUESTION
from seed_jax.quickstart.read_captions import Agreement, compare, read_caption, right_answer, together

_FREE_DRAWN = 200  # of the images written without the grammar, which may be thousands
_RECALLS = ("i2t_recall@1", "i2t_recall@5", "t2i_recall@1", "t2i_recall@5")


@dataclasses.dataclass(frozen=True)
class Example:
    """One thing that was asked: pictures shown, words said, the answer, whether it is wholly right."""

    task: str
    pictures: tuple[UInt8[np.ndarray, "S S 3"], ...]
    asked: str
    answer: str
    drawn: UInt8[np.ndarray, "S S 3"] | None
    right: bool


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found: shares of 1 by name, and examples for the page."""

    numbers: dict[str, float]
    examples: tuple[Example, ...]


def measure(config: ml_collections.ConfigDict, side: int, teacher: Path, workdir: Path) -> Measured:
    """Measure what `workdir` holds.

    Args:
        config: how many samples.
        side: of the pictures.
        teacher: holds the vision tower that tells how similar pictures are.
    """
    chain, similarity = Chain.load(workdir, side, config.batch), Similarity(teacher)
    found = [_rebuilding(chain, config.drawings, similarity)]
    if chain.generator is not None:
        found += [
            _captions(chain, config.samples, True),
            _captions(chain, config.samples, False),
            _questions(chain, config.samples, True),
            _questions(chain, config.samples, False),
            _drawing(chain, config.drawings, similarity),
            _editing(chain, config.drawings),
            _free_drawing(chain, config.free),
            _conversing(chain),
        ]
    numbers, shown, kept = _training(workdir), Counter(), []
    for part in found:
        numbers |= part.numbers
        for example in part.examples:
            shown[example.task] += 1
            if shown[example.task] <= config.shown:
                kept.append(example)
    return Measured(numbers, tuple(kept))


def _training(workdir: Path) -> dict[str, float]:
    """Return what the stages of the tokenizer measured themselves, at their end."""
    numbers = {}
    for stage, prefix, names in (
        ("qformer", "held/", _RECALLS),  # unless there was no stage I
        ("codebook", "held/", ("codes_used", "code_perplexity", *(f"code_{name}" for name in _RECALLS))),
    ):
        path = workdir / stage / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        latest = {key: value for line in lines for key, value in json.loads(line).items()}
        numbers |= {f"{stage}_{name}": latest[prefix + name] for name in names if prefix + name in latest}
    return numbers


def _samples(task: str, count: int, held: bool) -> list:
    return [make_sample(task, SEED, number, held) for number in range(count)]


def _named(name: str, agreements: Sequence[Agreement]) -> dict[str, float]:
    return {f"{name}_{key}": float(value) for key, value in together(list(agreements)).items()}


def _captions(chain: Chain, count: int, held: bool) -> Measured:
    scenes = [sample.items[0] for sample in _samples("captions", count, held)]
    pictures = [chain.picture(scene, number) for number, scene in enumerate(scenes)]
    codes = chain.codes(pictures)
    said = chain.say([[image_segment(row), TextSegment(CAPTION_QUESTION)] for row in codes])
    found = [compare(read_caption(text), scene) for text, scene in zip(said, scenes, strict=True)]
    numbers = _named(f"caption_{'held' if held else 'known'}", found)
    if not held:
        return Measured(numbers, ())
    numbers["codes_seen"] = len(np.unique(codes)) / chain.tokenizer.config.num_codes
    rows = zip(pictures, said, found, strict=True)
    return Measured(
        numbers,
        tuple(Example("describe", (picture,), "", text, None, each.whole) for picture, text, each in rows),
    )


def _questions(chain: Chain, count: int, held: bool) -> Measured:
    name, samples = f"answer_{'held' if held else 'known'}", _samples("questions", count, held)
    pictures = [chain.picture(sample.items[0], number) for number, sample in enumerate(samples)]
    asked, kinds = [sample.items[1] for sample in samples], [sample.meta["kinds"][0] for sample in samples]
    codes = chain.codes(pictures)
    said = chain.say([[image_segment(row), TextSegment(text)] for row, text in zip(codes, asked, strict=True)])
    right = [right_answer(kind, text, s.items[2]) for s, kind, text in zip(samples, kinds, said, strict=True)]
    numbers = {f"{name}_all": float(np.mean(right))}
    for kind in sorted(set(kinds)):
        numbers[f"{name}_{kind}"] = float(np.mean([each for each, of in zip(right, kinds, strict=True) if of == kind]))
    rows = zip(pictures, asked, said, right, strict=True) if held else ()
    return Measured(
        numbers, tuple(Example("answer", (picture,), text, answer, None, each) for picture, text, answer, each in rows)
    )


def _judged(drawn: UInt8[np.ndarray, "N S S 3"], scenes: Sequence[Scene]) -> list[Agreement]:
    return [compare(read_pixels.read(picture), scene) for picture, scene in zip(drawn, scenes, strict=True)]


def _rebuilding(chain: Chain, count: int, similarity: Similarity) -> Measured:
    scenes = [sample.items[0] for sample in _samples("captions", count, True)]
    pictures = [chain.picture(scene, number) for number, scene in enumerate(scenes)]
    drawn = chain.draw(chain.codes(pictures))
    found = _judged(drawn, scenes)
    numbers = _named("rebuilt", found) | {"rebuilt_similarity": similarity(np.stack(pictures), drawn)}
    rows = zip(pictures, drawn, found, strict=True)
    return Measured(
        numbers, tuple(Example("rebuild", (picture,), "", "", each, result.whole) for picture, each, result in rows)
    )


def _drawing(chain: Chain, count: int, similarity: Similarity) -> Measured:
    scenes = [sample.items[0] for sample in _samples("captions", count, True)]
    captions = [wording.captions(scene)[0] for scene in scenes]
    drawn = chain.draw(chain.imagine([drawing_prompt(caption) for caption in captions]))
    found = _judged(drawn, scenes)
    truly = np.stack([chain.picture(scene, number) for number, scene in enumerate(scenes)])
    numbers = _named("drawn", found) | {"drawn_similarity": similarity(truly, drawn)}
    rows = zip(captions, drawn, found, strict=True)
    return Measured(numbers, tuple(Example("draw", (), text, "", each, result.whole) for text, each, result in rows))


def _free_drawing(chain: Chain, count: int) -> Measured:
    """Draw without the grammar: how many images are whole, how right the drawings; an answer without one counts."""
    scenes = [sample.items[0] for sample in _samples("captions", count, True)]
    codes, whole = chain.imagine_freely([drawing_prompt(wording.captions(scene)[0]) for scene in scenes])
    some = _judged(chain.draw(codes[:_FREE_DRAWN]), scenes[:_FREE_DRAWN])
    return Measured({"free_images_whole": float(np.mean(whole)), **_named("free", some)}, ())


def _editing(chain: Chain, count: int) -> Measured:
    samples = _samples("edits", count, True)
    pictures = [chain.picture(sample.items[0], number) for number, sample in enumerate(samples)]
    rows = zip(chain.codes(pictures), samples, strict=True)
    drawn = chain.draw(chain.imagine([[image_segment(row), TextSegment(sample.items[2])] for row, sample in rows]))
    found = _judged(drawn, [sample.items[1] for sample in samples])
    rows = zip(pictures, samples, drawn, found, strict=True)
    return Measured(
        _named("edited", found),
        tuple(Example("edit", (picture,), s.items[2], "", each, result.whole) for picture, s, each, result in rows),
    )


def _conversing(chain: Chain) -> Measured:
    """Draw, change what was drawn, describe it, ask about it; each turn is asked with the picture it is about."""
    before = next(s for s in (make_sample("edits", SEED, n, True) for n in range(100)) if len(s.items[0].things) == 2)
    scene, after, instruction = before.items
    caption = wording.captions(scene)[0]
    first = chain.imagine([drawing_prompt(caption)])
    second = chain.imagine([[image_segment(first[0]), TextSegment(instruction)]])
    drawn = chain.draw(np.concatenate([first, second]))
    question = next(each for each in wording.questions(after) if each.kind == "relation")
    asked = (CAPTION_QUESTION, question.text)
    said = chain.say([[image_segment(second[0]), TextSegment(text)] for text in asked])
    right = [each.whole for each in _judged(drawn, [scene, after])]
    right += [compare(read_caption(said[0]), after).whole, right_answer("relation", said[1], question.answer)]
    request = drawing_prompt(caption)[0].text
    turns = [(request, "", drawn[0]), (instruction, "", drawn[1]), (asked[0], said[0], None), (asked[1], said[1], None)]
    return Measured({}, tuple(Example("talk", (), *turn, each) for turn, each in zip(turns, right, strict=True)))
