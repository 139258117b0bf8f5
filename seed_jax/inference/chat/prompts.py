"""Prompts in the styles that SEED-LLaMA was trained with (spec C.3): segments in, token ids out.

vicuna  8B: `USER: ` + turn + `\\nASSISTANT:`
llama2  14B: `[INST] ` + turn + ` [/INST]\\n`
base    not instruction-tuned: the segments as they stand

Every prompt begins with BOS. Images may stand anywhere in a turn; in the training data they come before the question.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from seed_jax.data.templates.dialogue import Markers
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment, Segment, TextSegment

USER, ASSISTANT = "user", "assistant"
PLACEHOLDER = "<image>"
BASE = "base"
# The very markers that training samples are made with.
STYLES = {name: Markers.of_style(name) for name in ("vicuna", "llama2")} | {BASE: Markers("", "", "")}


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: str
    segments: Sequence[Segment]


def build_prompt(turns: Sequence[Turn], style: str, vocabulary: Vocabulary, *, as_one: bool = False) -> list[int]:
    """Return the ids after which the assistant's next turn is to be generated.

    Args:
        as_one: encode the conversation as one text, as the original's demo does; by default every turn is encoded on
            its own, as in training, so that each begins with a blank of its own (spec I.A.22).

    Control tokens that a user writes out (`<img>`, `</s>`) are plain text.
    """
    markers = _markers(style)
    _check(turns, style)
    # The demo writes a blank between "ASSISTANT:" and the answer; encoded on its own, an answer begins with one anyway.
    blank = " " if as_one and not markers.after.endswith("\n") else ""
    groups: list[list[str | tuple[int, ...]]] = []
    for index, turn in enumerate(turns):
        content = [_part(segment) for segment in turn.segments]
        before = (markers.between if index else "") + markers.before
        groups.append([before, *content, markers.after] if turn.role == USER else [blank, *content])
    groups = [[part for group in groups for part in group]] if as_one else groups
    return [vocabulary.bos, *(i for group in groups for i in vocabulary.encode_parts(group, plain=True))]


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
    """Token ids that fit into the context, and how many of the oldest turns had to be left out for that."""

    ids: list[int]
    dropped: int


def fit_prompt(
    turns: Sequence[Turn], style: str, vocabulary: Vocabulary, room: int, *, as_one: bool = False
) -> FittedPrompt:
    """Build a prompt of at most `room` tokens, without the oldest questions and their answers where it is longer.

    Whole turns go: no image is ever cut. UserError where the last turn alone is too long.
    """
    for dropped in range(0, len(turns), 2):
        ids = build_prompt(turns[dropped:], style, vocabulary, as_one=as_one)
        if len(ids) <= room:
            return FittedPrompt(ids, dropped)
    raise UserError(
        f"The last turn alone has {len(ids)} tokens (an image {vocabulary.codes_per_image + 2}), but there is room for "
        f"{room}: shorten it, or ask for fewer new tokens."
    )


def check_placeholders(text: str, images: int) -> None:
    """Refuse a text whose `<image>` placeholders, if it has any, are not as many as there are images."""
    count = text.count(PLACEHOLDER)
    if count not in (0, images):
        raise UserError(
            f"The prompt has {count} {PLACEHOLDER} placeholder(s) but {images} image(s) are given: give one image for "
            "each, or leave the placeholders out to put the images before the text."
        )


def interleave(text: str, images: Sequence[Sequence[int]], frames: Sequence[int] | None = None) -> list[Segment]:
    """Return text and images (their codes) as segments: at the `<image>` placeholders, or before the text.

    Args:
        frames: how many of the images, in order, stand at each placeholder: those of a video stand at one. By default
            one each.
    """
    frames = [1] * len(images) if frames is None else frames
    check_placeholders(text, len(frames))
    rest = iter(ImageSegment(tuple(codes)) for codes in images)
    shown = [list(itertools.islice(rest, count)) for count in frames]
    if PLACEHOLDER not in text:
        return [*itertools.chain(*shown), *([TextSegment(text)] if text else [])]
    segments: list[Segment] = []
    for piece, group in itertools.zip_longest(text.split(PLACEHOLDER), shown, fillvalue=()):
        segments += [TextSegment(piece)] if piece else []
        segments += group
    return segments


def _markers(style: str) -> Markers:
    if style not in STYLES:
        raise UserError(f"Unknown prompt style {style!r}: expected one of {', '.join(STYLES)}.")
    return STYLES[style]


def _check(turns: Sequence[Turn], style: str) -> None:
    if not turns or (len(turns) > 1 and style == BASE):
        raise UserError(
            f"A prompt of style {style!r} has {len(turns)} turns, expected {'1' if turns else 'at least 1'}."
        )
    for index, turn in enumerate(turns):
        expected = (USER, ASSISTANT)[index % 2]
        if turn.role != expected:
            raise UserError(f"Turn {index + 1} has the role {turn.role!r}, expected {expected!r}: roles alternate.")
    if turns[-1].role != USER:
        raise UserError("The last turn is the assistant's: end with the user's turn that is to be answered.")


def _part(segment: Segment) -> str | tuple[int, ...]:
    if isinstance(segment, MalformedSegment):
        raise UserError(f"A turn holds {len(segment.ids)} image tokens that make no image: leave them out.")
    return segment.text if isinstance(segment, TextSegment) else segment.codes
