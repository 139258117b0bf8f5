"""Long documents in several samples, instead of losing what is over the maximum length (as the original does).

The document is encoded once and its tokens are cut, so that the samples one after the other hold exactly the tokens of
the whole: BOS begins each of them, EOS ends the last. Cuts lie at item borders, between an image with its text and
what follows. A text that does not fit is cut at the end of a sentence, or else of a word; where it belongs to an image
that stands before it, that image is repeated, not trained, before its rest.
"""

import dataclasses
import functools

import numpy as np

from seed_jax.data.templates.sample import Sample
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError

MIN_LENGTH = 128  # three images and a little text; anything shorter has no room for context
_SENTENCE_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")  # the last three are those of CJK
_MIN_TEXT = 32  # tokens of a divided text that stay with its images


@dataclasses.dataclass(frozen=True)
class Run:
    """Tokens [start, end) of the document: an image with its delimiters, or the text between two images."""

    start: int
    end: int
    is_image: bool

    def __len__(self) -> int:
        return self.end - self.start


@dataclasses.dataclass
class Group:
    """A text and the images that it belongs to: those before it, or, in documents after the swap, those after it."""

    before: list[Run] = dataclasses.field(default_factory=list)
    text: Run | None = None
    after: list[Run] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    @property
    def runs(self) -> list[Run]:
        return [*self.before, *([self.text] if self.text else []), *self.after]

    @property
    def images(self) -> int:
        return len(self.before) + len(self.after)


def continued(
    whole: Sample, vocab: Vocabulary, length: int, *, text_first: bool = False, max_images: int | None = None
) -> list[Sample]:
    """Cut a rendered document, BOS to EOS, into samples of at most `length` tokens.

    Args:
        text_first: a text belongs to the images after it (documents after the swap), not to those before it.
        max_images: images in a sample, one repeated for context included.
    """
    if not whole.kept or (len(whole) <= length and (max_images is None or _images(whole, vocab) <= max_images)):
        return [whole]
    cutter = _Cutter(whole, vocab, length - 2, max_images)
    for group in _groups(_runs(whole.tokens, vocab), text_first, cutter.most_images):
        cutter.add(group)
    return cutter.samples()


def _images(whole: Sample, vocab: Vocabulary) -> int:
    return int((whole.tokens == vocab.boi).sum())


def _runs(tokens: np.ndarray, vocab: Vocabulary) -> list[Run]:
    """Divide the tokens between BOS and EOS into images and texts."""
    found, place, end = [], 1, len(tokens) - 1
    is_code = (tokens >= vocab.first_code) & (tokens < vocab.first_code + vocab.num_codes)
    for start in np.flatnonzero(tokens[:end] == vocab.boi).tolist():
        stop = start + 1
        while stop < end and is_code[stop]:
            stop += 1
        if stop == end or tokens[stop] != vocab.eoi:  # the word "<img>" in a text
            continue
        if place < start:
            found.append(Run(place, start, is_image=False))
        place = stop + 1
        found.append(Run(start, place, is_image=True))
    return [*found, Run(place, end, is_image=False)] if place < end else found


def _groups(runs: list[Run], text_first: bool, most_images: int) -> list[Group]:
    groups = [Group()]
    for run in runs:
        full = groups[-1].images == most_images
        if run.is_image:
            if full or (groups[-1].text and not text_first):
                groups.append(Group())
            (groups[-1].after if text_first else groups[-1].before).append(run)
        else:
            if groups[-1].text or groups[-1].after:
                groups.append(Group())
            groups[-1].text = run
    return groups


class _Cutter:
    """Fills samples of `room` tokens between BOS and EOS."""

    def __init__(self, whole: Sample, vocab: Vocabulary, room: int, max_images: int | None):
        self.whole, self.room = whole, room
        self.max_images = max_images or room
        image = vocab.codes_per_image + 2
        self.most_images = max(1, min(self.max_images, room // 2 // image))  # of a group: half the room is for text
        self._stops = _stops(vocab)
        self._filled: list[list[tuple[Run, bool]]] = [[]]  # runs, each with whether it is trained

    def add(self, group: Group) -> None:
        if self._fits(group):
            self._put(group.runs)
        elif len(group) <= self.room:
            self._filled.append([])
            self._put(group.runs)
        else:
            self._divide(group)

    def samples(self) -> list[Sample]:
        last = len(self._filled) - 1
        return [self._sample(parts, number == last) for number, parts in enumerate(self._filled)]

    def _divide(self, group: Group) -> None:
        """Add a group whose text is too long for one sample."""
        text, after = group.text, sum(map(len, group.after))
        largest = max([after, *(len(run) for run in group.before)])
        if text is None or self.room < largest + _MIN_TEXT:
            raise UserError(f"an image of the document has too many codes for max_length {self.room + 2}.")
        if not self._fits(Group(group.before, Run(text.start, text.start + _MIN_TEXT, is_image=False))):
            self._filled.append([])
        self._put(group.before)
        while len(text) + after > self._left:
            fit = min(self._left, max(len(text) - _MIN_TEXT, 1) if after else len(text))
            middle = text.start + self._stop(self.whole.tokens[text.start : text.end], fit)
            self._put([Run(text.start, middle, is_image=False)])
            text = Run(middle, text.end, is_image=False)
            self._filled.append([(image, False) for image in group.before[-1:]])
        self._put([text, *group.after])

    def _put(self, runs: list[Run]) -> None:
        self._filled[-1] += [(run, True) for run in runs]

    def _fits(self, group: Group) -> bool:
        images = sum(run.is_image for run, _ in self._filled[-1])
        return len(group) <= self._left and images + group.images <= self.max_images

    @property
    def _left(self) -> int:
        return self.room - sum(len(run) for run, _ in self._filled[-1])

    def _stop(self, tokens: np.ndarray, fit: int) -> int:
        """Return where to cut a text such that at most `fit` tokens come before: the later the better the place."""
        candidates = np.arange(max(fit // 2, 1), fit + 1)
        candidates = candidates[candidates < len(tokens)]
        before, behind = tokens[candidates - 1], tokens[candidates]
        stops = self._stops
        word = stops.begins_word[behind]
        for good in (word & stops.ends_sentence[before], word, ~stops.inside_character[behind]):
            if good.any():
                return int(candidates[good][-1])
        return fit

    def _sample(self, parts: list[tuple[Run, bool]], is_last: bool) -> Sample:
        whole = self.whole
        edges = [slice(0, 1), *(slice(run.start, run.end) for run, _ in parts), *([slice(-1, None)] if is_last else [])]
        trained = [True, *(trained for _, trained in parts), True]
        return Sample(
            np.concatenate([whole.tokens[edge] for edge in edges]),
            np.concatenate([whole.loss_mask[edge] & each for edge, each in zip(edges, trained, strict=False)]),
        )


@dataclasses.dataclass(frozen=True)
class _Stops:
    """What each token is good for as a border: bool [vocabulary]."""

    begins_word: np.ndarray
    ends_sentence: np.ndarray
    inside_character: np.ndarray  # the second and later bytes of a character that has no piece of its own


@functools.lru_cache(maxsize=2)
def _stops(vocab: Vocabulary) -> _Stops:
    names = vocab.pieces(range(vocab.size))
    newline = "<0x0A>"
    return _Stops(
        begins_word=np.array([name.startswith("▁") or name == newline for name in names]),
        ends_sentence=np.array([name.endswith(_SENTENCE_ENDS) or name == newline for name in names]),
        inside_character=np.array([name[:3] == "<0x" and "8" <= name[3] <= "B" for name in names]),
    )
