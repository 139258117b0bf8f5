"""Prompts and answers as lists of segments, text or image, instead of strings that have to be parsed."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.decode_loop import DecodeOutputs
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.stop_strings import truncate_at_stop


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """A piece of text."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


@dataclasses.dataclass(frozen=True)
class ImageSegment:
    """An image, as its codes."""

    codes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"type": "image", "codes": list(self.codes)}


@dataclasses.dataclass(frozen=True)
class MalformedSegment:
    """Image tokens that form no image, as generated; only possible without the grammar."""

    ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"type": "malformed", "ids": list(self.ids)}


Segment = TextSegment | ImageSegment | MalformedSegment


def parse_segments(ids: Sequence[int], vocabulary: Vocabulary) -> list[Segment]:
    """Split generated ids into text, complete images, and image tokens that form none; control tokens are removed."""
    segments: list[Segment] = []
    control = {vocabulary.bos, vocabulary.eos, vocabulary.unk, vocabulary.pad}
    for is_image, run in _runs(list(ids), vocabulary):
        if not is_image:
            text = vocabulary.decode([token for token in run if token not in control])
            segments += [TextSegment(text)] if text else []
            continue
        codes = tuple(code for token in run[1:-1] if (code := vocabulary.code_of(token)) is not None)
        delimited = run[0] == vocabulary.boi and run[-1] == vocabulary.eoi
        if delimited and len(codes) == len(run) - 2 == vocabulary.codes_per_image:
            segments.append(ImageSegment(codes))
        else:
            segments.append(MalformedSegment(tuple(run)))
    return segments


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
    """The answer to one request.

    Attributes:
        ids: generated token ids without EOS; a forced `<img>` is included.
        segments: the ids as text and images; a stop string, and what follows it in its last token, is removed.
        finish_reason: "eos", "stop" (a stop string), "length" (max_new_tokens or the context length), "interrupted".
        score: for beam search, log p / length ** length_penalty.
    """

    ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    finish_reason: str
    score: float | None = None

    @classmethod
    def from_outputs(
        cls, outputs: DecodeOutputs, index: int, sampling_params: SamplingParams, vocabulary: Vocabulary
    ) -> "Generation":
        """Build the answer of sequence `index` from outputs on the host; a sequence not done was interrupted."""
        ids = tuple(map(int, outputs.ids[index, : outputs.lengths[index]]))
        finish_reason = "length" if outputs.done[index] else "interrupted"
        if outputs.hit_eos[index]:
            finish_reason = "eos"
        elif outputs.hit_stop[index]:
            finish_reason = "stop"
        score = None if outputs.scores is None else float(outputs.scores[index])
        return cls.from_ids(ids, finish_reason, sampling_params, vocabulary, score)

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[int],
        finish_reason: str,
        sampling_params: SamplingParams,
        vocabulary: Vocabulary,
        score: float | None = None,
    ) -> "Generation":
        """Build the answer from its ids without EOS; after a stop string the last text ends before it."""
        segments = parse_segments(ids, vocabulary)
        last = segments[-1] if segments else None
        if finish_reason == "stop" and isinstance(last, TextSegment):
            text = truncate_at_stop(last.text, sampling_params.stop_strings)
            segments[-1:] = [TextSegment(text)] if text else []
        return cls(tuple(ids), tuple(segments), finish_reason, score)
