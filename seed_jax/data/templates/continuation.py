"""Split long documents into several samples instead of truncating them (as the original does).

The document is encoded once and its tokens are split, so that the samples in sequence hold exactly the tokens of the
document: BOS begins each sample, EOS ends the last. Splits are placed at item boundaries, between an image with its
text and the next item. A text that does not fit is split after a sentence, otherwise after a word; if it follows an
image, that image is repeated (not trained) before the rest of the text.
"""

import dataclasses
import functools

import numpy as np

from seed_jax.data.templates.sample import RenderedSample
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError

MIN_LENGTH = 128  # tokens: three images and a little text; shorter samples leave no room for context
_SENTENCE_ENDS = tuple(mark.encode() for mark in ".!?\u3002\uff01\uff1f")  # the last three are CJK
_MIN_TEXT = 32  # minimum tokens of a split text that stay with its images


@dataclasses.dataclass(frozen=True)
class Run:
    """Token range [start, end) of the document: an image with its delimiters, or the text between two images."""

    start: int
    end: int
    is_image: bool

    def __len__(self) -> int:
        return self.end - self.start


@dataclasses.dataclass
class Group:
    """A text and its images: those before it, or, in swapped documents, those after it."""

    before: list[Run] = dataclasses.field(default_factory=list)
    text: Run | None = None
    after: list[Run] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    @property
    def runs(self) -> list[Run]:
        return [*self.before, *([self.text] if self.text else []), *self.after]

    @property
    def num_images(self) -> int:
        return len(self.before) + len(self.after)


def continued(
    whole: RenderedSample, vocab: Vocabulary, length: int, *, text_first: bool = False, max_images: int | None = None
) -> list[RenderedSample]:
    """Split a rendered document into samples of at most `length` tokens.

    Args:
        whole: the document, BOS to EOS.
        vocab: the vocabulary of its tokens.
        length: maximum tokens of a sample.
        text_first: a text belongs to the images after it (swapped documents), not to those before it.
        max_images: maximum images of a sample, including one repeated as context.

    Raises:
        UserError: an image does not fit into a sample.
    """
    if not whole.kept or (len(whole) <= length and (max_images is None or _num_images(whole, vocab) <= max_images)):
        return [whole]
    splitter = _Splitter(whole, vocab, length - 2, max_images)
    for group in _groups(_runs(whole.tokens, vocab), text_first, splitter.max_group_images):
        splitter.add(group)
    return splitter.samples()


def _num_images(whole: RenderedSample, vocab: Vocabulary) -> int:
    return int((whole.tokens == vocab.boi).sum())


def _runs(tokens: np.ndarray, vocab: Vocabulary) -> list[Run]:
    """Divide the tokens between BOS and EOS into images and texts."""
    runs: list[Run] = []
    position = 1
    end = len(tokens) - 1
    is_code = (tokens >= vocab.first_code) & (tokens < vocab.first_code + vocab.num_codes)
    for start in np.flatnonzero(tokens[:end] == vocab.boi).tolist():
        stop = start + 1
        while stop < end and is_code[stop]:
            stop += 1
        if stop == end or tokens[stop] != vocab.eoi:  # the literal text "<img>"
            continue
        if position < start:
            runs.append(Run(position, start, is_image=False))
        position = stop + 1
        runs.append(Run(start, position, is_image=True))
    return [*runs, Run(position, end, is_image=False)] if position < end else runs


def _groups(runs: list[Run], text_first: bool, max_images: int) -> list[Group]:
    """Assign images to their texts; a group has at most `max_images` images and one text."""
    groups = [Group()]
    for run in runs:
        full = groups[-1].num_images == max_images
        if run.is_image:
            if full or (groups[-1].text and not text_first):
                groups.append(Group())
            (groups[-1].after if text_first else groups[-1].before).append(run)
        else:
            if groups[-1].text or groups[-1].after:
                groups.append(Group())
            groups[-1].text = run
    return groups


class _Splitter:
    """Fills samples with up to `room` tokens between BOS and EOS."""

    def __init__(self, whole: RenderedSample, vocab: Vocabulary, room: int, max_images: int | None):
        self.whole = whole
        self.room = room
        self.max_images = max_images or room
        image_length = vocab.codes_per_image + 2
        # Half of the room is reserved for text.
        self.max_group_images = max(1, min(self.max_images, room // 2 // image_length))
        self._boundaries = _boundaries(vocab)
        self._filled: list[list[tuple[Run, bool]]] = [[]]  # (run, whether it is trained) of every sample

    def add(self, group: Group) -> None:
        if self._fits(group):
            self._put(group.runs)
        elif len(group) <= self.room:
            self._filled.append([])
            self._put(group.runs)
        else:
            self._add_split(group)

    def samples(self) -> list[RenderedSample]:
        last = len(self._filled) - 1
        return [self._sample(runs, number == last) for number, runs in enumerate(self._filled)]

    def _add_split(self, group: Group) -> None:
        """Add a group whose text is too long for one sample."""
        text = group.text
        after = sum(map(len, group.after))
        largest = max([after, *(len(run) for run in group.before)])
        if text is None or self.room < largest + _MIN_TEXT:
            raise UserError(f"an image of the document has too many codes for max_length {self.room + 2}.")
        if not self._fits(Group(group.before, Run(text.start, text.start + _MIN_TEXT, is_image=False))):
            self._filled.append([])
        self._put(group.before)
        while len(text) + after > self._remaining:
            fit = min(self._remaining, max(len(text) - _MIN_TEXT, 1) if after else len(text))
            middle = text.start + self._best_split(self.whole.tokens[text.start : text.end], fit)
            self._put([Run(text.start, middle, is_image=False)])
            text = Run(middle, text.end, is_image=False)
            self._filled.append([(image, False) for image in group.before[-1:]])
        self._put([text, *group.after])

    def _put(self, runs: list[Run]) -> None:
        self._filled[-1] += [(run, True) for run in runs]

    def _fits(self, group: Group) -> bool:
        num_images = sum(run.is_image for run, _ in self._filled[-1])
        return len(group) <= self._remaining and num_images + group.num_images <= self.max_images

    @property
    def _remaining(self) -> int:
        return self.room - sum(len(run) for run, _ in self._filled[-1])

    def _best_split(self, tokens: np.ndarray, fit: int) -> int:
        """Return the best position to split a text after at most `fit` tokens: the last one of the best kind."""
        candidates = np.arange(max(fit // 2, 1), fit + 1)
        candidates = candidates[candidates < len(tokens)]
        before = tokens[candidates - 1]
        after = tokens[candidates]
        word = self._boundaries.begins_word[after]
        sentence = word & self._boundaries.ends_sentence[before]
        for allowed in (sentence, word, ~self._boundaries.inside_character[after]):
            if allowed.any():
                return int(candidates[allowed][-1])
        return fit

    def _sample(self, runs: list[tuple[Run, bool]], is_last: bool) -> RenderedSample:
        whole = self.whole
        slices = [(slice(0, 1), True), *((slice(run.start, run.end), trained) for run, trained in runs)]
        if is_last:
            slices.append((slice(-1, None), True))
        return RenderedSample(
            np.concatenate([whole.tokens[tokens] for tokens, _ in slices]),
            np.concatenate([whole.loss_mask[tokens] & trained for tokens, trained in slices]),
        )


@dataclasses.dataclass(frozen=True)
class _Boundaries:
    """Which tokens allow a split: bool [vocabulary] each."""

    begins_word: np.ndarray
    ends_sentence: np.ndarray
    inside_character: np.ndarray  # later bytes of a character without a piece of its own


@functools.lru_cache(maxsize=2)
def _boundaries(vocab: Vocabulary) -> _Boundaries:
    texts = [vocab.token_bytes(token) for token in range(vocab.size)]
    newline = b"\n"
    return _Boundaries(
        begins_word=np.array([text.startswith(b" ") or text == newline for text in texts]),
        ends_sentence=np.array([text.endswith(_SENTENCE_ENDS) or text == newline for text in texts]),
        inside_character=np.array([0x80 <= (text or b"\0")[0] < 0xC0 for text in texts]),
    )
