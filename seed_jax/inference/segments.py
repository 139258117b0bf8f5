"""Prompts and answers as lists of segments, text or image; never a string that somebody has to take apart."""

import dataclasses
from collections.abc import Iterator, Sequence

from seed_jax.data.vocab import Vocabulary


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """A piece of text."""

    text: str

    def to_dict(self) -> dict:
        return {"type": "text", "text": self.text}


@dataclasses.dataclass(frozen=True)
class ImageSegment:
    """An image: its codes."""

    codes: tuple[int, ...]

    def to_dict(self) -> dict:
        return {"type": "image", "codes": list(self.codes)}


@dataclasses.dataclass(frozen=True)
class MalformedSegment:
    """Image tokens that make no image, which only happens without a grammar; `ids` as they were generated."""

    ids: tuple[int, ...]

    def to_dict(self) -> dict:
        return {"type": "malformed", "ids": list(self.ids)}


Segment = TextSegment | ImageSegment | MalformedSegment


def parse(ids: Sequence[int], vocabulary: Vocabulary) -> list[Segment]:
    """Cut generated ids into text, whole images, and image tokens that make none; control tokens are left out."""
    segments: list[Segment] = []
    for is_image, run in _runs(list(ids), vocabulary):
        codes = tuple(vocabulary.code_of(token) for token in run[1:-1]) if is_image else ()
        if not is_image:
            text = vocabulary.decode([token for token in run if token not in _control(vocabulary)])
            segments += [TextSegment(text)] if text else []
        elif run[0] == vocabulary.boi and run[-1] == vocabulary.eoi and len(codes) == vocabulary.codes_per_image:
            segments.append(ImageSegment(codes))
        else:
            segments.append(MalformedSegment(tuple(run)))
    return segments


def _control(vocabulary: Vocabulary) -> set[int]:
    return {vocabulary.bos, vocabulary.eos, vocabulary.unk, vocabulary.pad}


def _runs(ids: list[int], vocabulary: Vocabulary) -> Iterator[tuple[bool, list[int]]]:
    """Yield (whether of image tokens, ids); `<img>` begins a run of image tokens and `</img>` ends it."""
    run: list[int] = []
    inside = False
    for token in ids:
        is_image = token in (vocabulary.boi, vocabulary.eoi) or vocabulary.code_of(token) is not None
        if run and (is_image != inside or token == vocabulary.boi or run[-1] == vocabulary.eoi):
            yield inside, run
            run = []
        inside = is_image
        run.append(token)
    if run:
        yield inside, run
