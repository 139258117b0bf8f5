"""The phrases that templates put around a record, read from a JSON file and replaceable."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.files import parse_json, read_text

DEFAULT = Path(__file__).with_name("phrases.json")

# Appended to questions with a short answer; the benchmarks append the same text (spec C.3).
SHORT_ANSWER = " Please provide an accurate answer consisting of only one word or phrase."


@dataclasses.dataclass(frozen=True)
class Phrases:
    """Requests and replies; those of one task are paired by index.

    Attributes:
        requests, closing_marks, replies: image generation: request + " " + caption + closing mark, then reply + image.
        requests_drawn: indices to draw from.
        edit_replies, edit_replies_drawn: replies of image editing and the indices to draw from.
        sentences: introduce the first and the second image of a difference.
        names: replacements of "image a", "image A", "image b", "image B".
        next_request, next_reply: story with one image per turn; the request is appended to a caption.
        story_requests, story_replies, story_drawn: story in one reply.
        edit_prefix: removed from an instruction by the pre-training form of editing.
    """

    requests: tuple[str, ...]
    closing_marks: tuple[str, ...]
    replies: tuple[str, ...]
    requests_drawn: tuple[int, ...]
    edit_replies: tuple[str, ...]
    edit_replies_drawn: tuple[int, ...]
    sentences: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    next_request: str
    next_reply: str
    story_requests: tuple[str, ...]
    story_replies: tuple[str, ...]
    story_drawn: tuple[int, ...]
    edit_prefix: str

    @classmethod
    def load(cls, path: str | Path = DEFAULT) -> "Phrases":
        """Read a phrases file; errors name the file and the key."""
        try:
            content = parse_json(read_text(Path(path)))
        except (OSError, ValueError) as error:
            raise UserError(f"Phrases file {path} is not readable JSON ({error}).") from error
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Any, origin: str = "phrases") -> "Phrases":
        """Validate the content of a phrases file (its keys: see `phrases.json`)."""

        def text(section: str, key: str) -> str:
            return _typed(content, section, key, str, origin)

        def texts(section: str, key: str) -> tuple[str, ...]:
            return tuple(_typed(content, section, key, list, origin, str))

        def drawn(section: str, key: str, among: tuple[str, ...]) -> tuple[int, ...]:
            indices = tuple(_typed(content, section, key, list, origin, int))
            if not indices or not all(0 <= index < len(among) for index in indices):
                raise UserError(
                    f"{section}.{key} of {origin} must list indices from 0 to {len(among) - 1}, at least one."
                )
            return indices

        requests = texts("image_generation", "requests")
        edit_replies = texts("image_editing", "replies")
        stories = texts("story", "single_turn_requests")
        phrases = cls(
            requests=requests,
            closing_marks=texts("image_generation", "closing_mark"),
            replies=texts("image_generation", "replies"),
            requests_drawn=drawn("image_generation", "drawn_indices", requests),
            edit_replies=edit_replies,
            edit_replies_drawn=drawn("image_editing", "drawn_indices", edit_replies),
            sentences=texts("image_difference", "sentences"),
            names=tuple(_typed(content, "image_difference", "replacements", dict, origin).items()),
            next_request=text("story", "multi_turn_request_suffix"),
            next_reply=text("story", "multi_turn_reply"),
            story_requests=stories,
            story_replies=texts("story", "single_turn_replies"),
            story_drawn=drawn("story", "drawn_indices", stories),
            edit_prefix=text("pretrain_edit", "removed_prefix"),
        )
        phrases._check(origin)
        return phrases

    def _check(self, origin: str) -> None:
        for key, count, expected in (
            ("image_generation.replies", len(self.replies), len(self.requests)),
            ("image_generation.closing_mark", len(self.closing_marks), len(self.requests)),
            ("story.single_turn_replies", len(self.story_replies), len(self.story_requests)),
            ("image_difference.sentences", len(self.sentences), 2),
        ):
            if count != expected:
                raise UserError(f"{key} of {origin} has {count} entries, expected {expected}.")
        if [name for name, _ in self.names] != ["image a", "image A", "image b", "image B"]:
            raise UserError(f"image_difference.replacements of {origin} must name image a, image A, image b, image B.")


def _typed(content: Any, section: str, key: str, kind: type, origin: str, item: type | None = None) -> Any:
    """Return `content[section][key]` after checking its type and that of its items."""
    section_content = content.get(section) if isinstance(content, Mapping) else None
    value: Any = section_content.get(key) if isinstance(section_content, Mapping) else None
    if type(value) is not kind or (item and not all(type(entry) is item for entry in value)):
        expected = f"a list of {item.__name__}" if item else f"a {kind.__name__}"
        raise UserError(f"{section}.{key} of {origin} must be {expected}: see all keys in {DEFAULT}.")
    return value
