"""Read from words what they say about a scene, and compare scenes attribute by attribute."""

import re

import flax.struct

from seed_jax.data.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing
from seed_jax.data.world.scenes import COLUMN, PLACES, ROW
from seed_jax.data.world.wording import NUMBERS

_COLOUR, _SHAPE, _SIZE = ("|".join(names) for names in (COLOURS, SHAPES, SIZES))
_THING = re.compile(rf"\b({_SIZE})\s+({_COLOUR})\s+({_SHAPE})\b")
_GROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)})\s+background\b")
_PLACE = re.compile("|".join(PLACES))
# Words of order -> arrangement.
_ORDERS = {"from left to right": ROW, "from top to bottom": COLUMN}
# Words between two things, or before both -> arrangement, and whether things go that way where the words are between.
_RELATIONS = {"left of": (ROW, True), "right of": (ROW, False), "above": (COLUMN, True), "below": (COLUMN, False)}
ATTRIBUTES = ("size", "colour", "shape", "arrangement", "background", "count")
_KINDS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "count": NUMBERS,
    "relation": ("left", "right", "above", "below"),
    "background": tuple(BACKGROUNDS),
}


@flax.struct.dataclass
class Agreement:
    """How many attributes of what was meant were found: name -> (right, all)."""

    counts: dict[str, tuple[int, int]]

    @property
    def share(self) -> float:
        right, of = (sum(each) for each in zip(*self.counts.values(), strict=True))
        return right / of

    @property
    def whole(self) -> bool:
        """Whether everything is right."""
        return all(right == of for right, of in self.counts.values())


def read_caption(text: str) -> Scene:
    """Return the scene that a caption describes, as far as it does."""
    text = " ".join(text.lower().split())
    things = [Thing(*found) for found in _THING.findall(text)]
    ground = _GROUND.search(text)
    arrangement = ""
    if len(things) == 1:
        arrangement = match[0] if (match := _PLACE.search(text)) else ""
    elif len(things) > 1:
        arrangement, forward = _order(text)
        things = things if forward else things[::-1]
    return Scene(tuple(things), arrangement, ground[1] if ground else "")


def _order(text: str) -> tuple[str, bool]:
    """Return the arrangement that words tell, and whether the things are named in its direction."""
    for words, arrangement in _ORDERS.items():
        if words in text:
            return arrangement, True
    for words, (arrangement, forward) in _RELATIONS.items():
        if words in text:
            # "Right of a star, a circle": what is named first is what the other stands right of.
            before = text.index(words) < _THING.search(text).start()
            return arrangement, forward != before
    return "", True


def compare(found: Scene, meant: Scene) -> Agreement:
    """Count which attributes of `meant` are in `found`; things are compared place by place in their order."""
    of = len(meant.things)
    counts = {
        name: (sum(getattr(a, name) == getattr(b, name) for a, b in zip(found.things, meant.things, strict=False)), of)
        for name in ("size", "colour", "shape")
    }
    counts["arrangement"] = (int(found.arrangement == meant.arrangement), 1)
    counts["background"] = (int(found.background == meant.background), 1)
    counts["count"] = (int(len(found.things) == of), 1)
    return Agreement(counts)


def together(agreements: list[Agreement]) -> dict[str, float]:
    """Return the share of right attributes, by name and over all (`attributes`), and of wholly right ones (`whole`)."""
    sums = {
        name: [sum(part) for part in zip(*(each.counts[name] for each in agreements), strict=True)]
        for name in ATTRIBUTES
    }
    shares = {name: right / of for name, (right, of) in sums.items()}
    right, of = (sum(part) for part in zip(*sums.values(), strict=True))
    return {**shares, "attributes": right / of, "whole": sum(each.whole for each in agreements) / len(agreements)}


def right_answer(kind: str, found: str, meant: str) -> bool:
    """Say whether an answer to a question of this kind names what was meant, and nothing else of its kind."""
    words = re.findall(r"[a-z]+", found.lower())
    return {word for word in words if word in _KINDS[kind]} == {meant}
