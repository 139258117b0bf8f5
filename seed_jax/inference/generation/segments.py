"""Prompts and answers as lists of segments, text or image; never a string that somebody has to take apart."""

import dataclasses
from collections.abc import Iterator, Sequence

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.decode_loop import Answers
from seed_jax.inference.generation.sampling_params import Settings
from seed_jax.inference.generation.stop_strings import cut


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


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was generated after one prompt.

    Attributes:
        ids: without the end of the sequence; with a forced `<img>`.
        segments: of the ids; a stop string that ended the answer, and what follows it in its last token, are cut off.
        stopped: "eos", "stop" (a stop string), "length" where the budget or the context was used up, "interrupted".
        score: of a beam search, log p / length ** penalty.
    """

    ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    stopped: str
    score: float | None = None

    @classmethod
    def of(cls, answers: Answers, row: int, settings: Settings, vocabulary: Vocabulary) -> "Generation":
        """Take a row of a program's answers, on the host; one that is not done was interrupted."""
        ids = tuple(map(int, answers.ids[row, : answers.counts[row]]))
        segments, stopped = parse(ids, vocabulary), "length" if answers.done[row] else "interrupted"
        if answers.ended[row]:
            stopped = "eos"
        elif answers.stopped[row]:
            stopped = "stop"
            if segments and isinstance(segments[-1], TextSegment):
                text = cut(segments[-1].text, settings.stop)
                segments[-1:] = [TextSegment(text)] if text else []
        score = None if answers.scores is None else float(answers.scores[row])
        return cls(ids, tuple(segments), stopped, score)
