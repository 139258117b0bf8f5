r"""Prompts in the styles that SEED-LLaMA was trained with (spec C.3): segments in, token ids out.

| style | prompt |
|---|---|
| vicuna | SEED-LLaMA-8B: ``USER: {message}\nASSISTANT:`` |
| llama2 | SEED-LLaMA-14B: ``[INST] {message} [/INST]\n`` |
| base | models without instruction tuning: the segments without markers |
| seed1 | SEED-OPT: with images, code vectors and `A photo of` or the text; without, `Generate an image {text}` |

Every prompt begins with BOS. Images may stand anywhere in a message; in the training data they precede the question.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

from seed_jax.data.templates.dialogue import Markers
from seed_jax.data.templates.pretrain import SEED1_CAPTION_PREFIX, SEED1_IMAGE_PREFIX
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment, Segment, TextSegment

USER, ASSISTANT = "user", "assistant"
PLACEHOLDER = "<image>"
ESCAPED_PLACEHOLDER = r"\<image>"  # stands for the characters `<image>`
_PLACEHOLDER = re.compile(r"(?<!\\)<image>")
BASE_STYLE, SEED1_STYLE = "base", "seed1"
# Styles without roles: every message is answered on its own.
SINGLE_TURN_STYLES = (BASE_STYLE, SEED1_STYLE)
# The same markers as in training samples.
STYLES = {
    **{name: Markers.of_style(name) for name in ("vicuna", "llama2")},
    **{name: Markers("", "", "") for name in SINGLE_TURN_STYLES},
}


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "user" or "assistant".
        segments: text and images.
    """

    role: str
    segments: Sequence[Segment]


AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
    """A prompt that fits into the context.

    Attributes:
        ids: token ids.
        num_dropped: how many of the oldest messages were left out.
    """

    ids: list[int]
    num_dropped: int


def build_prompt(
    messages: Sequence[Message], style: str, vocabulary: Vocabulary, *, as_one: bool = False, system: str = ""
) -> list[int]:
    """Return the token ids after which the assistant's next message is generated.

    Control tokens in the text of a user (`<img>`, `</s>`) are encoded as plain text.

    Args:
        messages: alternating messages of user and assistant, the last one by the user.
        style: "vicuna", "llama2", "base" or "seed1".
        vocabulary: of the model.
        as_one: encode the conversation as one text, as the original's demo does; by default every message is encoded
            separately, as in training, so that each begins with its own space (spec I.A.22).
        system: text before the first message, on a line of its own, as in training samples with a system message.

    Raises:
        UserError: the style is unknown, the roles do not alternate, or a message contains a malformed image.
    """
    check_style(style)
    _check_roles(messages, style)
    if style == SEED1_STYLE:
        parts = [_content(segment) for segment in messages[-1].segments]
        return [vocabulary.bos, *vocabulary.encode_parts(_with_prefix(parts), plain=True, as_vectors=True)]
    markers = STYLES[style]
    # The demo writes a space between "ASSISTANT:" and the answer; an answer encoded separately begins with one anyway.
    space = " " if as_one and not markers.after.endswith("\n") else ""
    groups: list[list[str | tuple[int, ...]]] = []
    for index, message in enumerate(messages):
        content = [_content(segment) for segment in message.segments]
        before = (markers.between if index else "") + markers.before
        groups.append([before, *content, markers.after] if message.role == USER else [space, *content])
    if system:
        groups.insert(0, [system if system.endswith("\n") else f"{system}\n"])
    groups = [[part for group in groups for part in group]] if as_one else groups
    return [vocabulary.bos, *(i for group in groups for i in vocabulary.encode_parts(group, plain=True))]


def fit_prompt(
    messages: Sequence[Message],
    style: str,
    vocabulary: Vocabulary,
    max_tokens: int,
    *,
    as_one: bool = False,
    system: str = "",
) -> FittedPrompt:
    """Build a prompt of at most `max_tokens` tokens, dropping the oldest questions and their answers if necessary.

    Messages are dropped as a whole: an image is never truncated. The system text is kept. Of styles without roles, only
    the last message is used.

    Raises:
        UserError: the last message alone is too long.
    """
    ids = []
    first = max(len(messages) - 1, 0) if style in SINGLE_TURN_STYLES else 0
    for num_dropped in range(first, len(messages), 2):
        ids = build_prompt(messages[num_dropped:], style, vocabulary, as_one=as_one, system=system)
        if len(ids) <= max_tokens:
            return FittedPrompt(ids, num_dropped)
    raise UserError(
        f"The last message alone has {len(ids)} tokens (an image has {vocabulary.codes_per_image + 2}), but the "
        f"context has room for {max_tokens}: shorten it, or reduce max_new_tokens."
    )


def recent_messages(messages: Sequence[AnyMessage], max_questions: int | None) -> Sequence[AnyMessage]:
    """Return the last `max_questions` questions and their answers; None keeps all."""
    return messages if max_questions is None else messages[max(len(messages) - 2 * max_questions, 0) :]


def max_prompt_tokens(context_length: int, max_new_tokens: int) -> int:
    """Return the room for a prompt beside the requested answer, for which at most half of the context is kept free."""
    return context_length - min(max_new_tokens, context_length // 2)


def check_style(style: str) -> None:
    """Raise UserError for an unknown prompt style."""
    if style not in STYLES:
        raise UserError(f"Unknown prompt style {style!r}: expected one of {', '.join(STYLES)}.")


def check_placeholders(text: str, num_images: int) -> None:
    """Raise UserError if a text has `<image>` placeholders, but not as many as there are images."""
    count = len(_PLACEHOLDER.findall(text))
    if count not in (0, num_images):
        raise UserError(
            f"The prompt has {count} {PLACEHOLDER} placeholder(s) but {num_images} image(s) are given: give one image "
            "per placeholder, leave the placeholders out to put the images before the text, or write "
            f"{ESCAPED_PLACEHOLDER} for the characters themselves."
        )


def interleave(text: str, images: Sequence[Sequence[int]], group_sizes: Sequence[int] | None = None) -> list[Segment]:
    """Return text and images as segments: images replace the `<image>` placeholders, or precede the text.

    Args:
        text: text of a message; `\\<image>` stands for the characters `<image>`.
        images: codes of each image.
        group_sizes: how many consecutive images share a placeholder, such as the frames of a video; by default one
            each.
    """
    group_sizes = [1] * len(images) if group_sizes is None else group_sizes
    check_placeholders(text, len(group_sizes))
    rest = iter(ImageSegment(tuple(codes)) for codes in images)
    groups = [list(itertools.islice(rest, size)) for size in group_sizes]
    pieces = [piece.replace(ESCAPED_PLACEHOLDER, PLACEHOLDER) for piece in _PLACEHOLDER.split(text)]
    if len(pieces) == 1:
        return [*itertools.chain(*groups), *([TextSegment(pieces[0])] if pieces[0] else [])]
    segments: list[Segment] = []
    for piece, group in itertools.zip_longest(pieces, groups, fillvalue=()):
        segments += [TextSegment(str(piece))] if piece else []
        segments += group
    return segments


def _check_roles(messages: Sequence[Message], style: str) -> None:
    if not messages or (len(messages) > 1 and style in SINGLE_TURN_STYLES):
        expected = "1" if messages else "at least 1"
        raise UserError(f"A prompt of style {style!r} has {len(messages)} messages, expected {expected}.")
    for index, message in enumerate(messages):
        expected = (USER, ASSISTANT)[index % 2]
        if message.role != expected:
            raise UserError(
                f"Message {index + 1} has the role {message.role!r}, expected {expected!r}: roles alternate."
            )
    if messages[-1].role != USER:
        raise UserError("The last message is the assistant's: end with the user's message to answer.")


def _with_prefix(parts: list[str | tuple[int, ...]]) -> list[str | tuple[int, ...]]:
    """Return the parts of a message to SEED-OPT with the prefix of its task."""
    text = "".join(part for part in parts if isinstance(part, str)).strip()
    if any(not isinstance(part, str) for part in parts):
        return parts if text else [*parts, SEED1_CAPTION_PREFIX]
    return [text if text.startswith(SEED1_IMAGE_PREFIX) else f"{SEED1_IMAGE_PREFIX} {text}"]


def _content(segment: Segment) -> str | tuple[int, ...]:
    if isinstance(segment, MalformedSegment):
        raise UserError(
            f"A message contains {len(segment.ids)} image tokens that form no image: remove the malformed segment."
        )
    return segment.text if isinstance(segment, TextSegment) else segment.codes
