"""Count the n-grams of many tokenized captions at once."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

MAX_N = 4


@dataclasses.dataclass(frozen=True, eq=False)
class NGrams:
    """The n-grams of one length, each counted once for each caption that has it, in the order of the captions."""

    caption: Int[np.ndarray, " pairs"]
    ngram: Int[np.ndarray, " pairs"]  # numbers of n-grams, the same in candidates and references
    count: Int[np.ndarray, " pairs"]
    image: Int[np.ndarray, " pairs"]
    distinct: int  # how many different n-grams there are

    @property
    def key(self) -> Int[np.ndarray, " pairs"]:
        """A number for each pair of image and n-gram."""
        return self.image * self.distinct + self.ngram

    def select(self, kept: Bool[np.ndarray, " pairs"]) -> "NGrams":
        return NGrams(self.caption[kept], self.ngram[kept], self.count[kept], self.image[kept], self.distinct)


@dataclasses.dataclass(frozen=True, eq=False)
class CountedCaptions:
    """Lengths and n-grams of one candidate for each image, and of all images' references one after the other."""

    images: int
    image_of_reference: Int[np.ndarray, " references"]
    candidate_words: Int[np.ndarray, " images"]
    reference_words: Int[np.ndarray, " references"]
    candidates: list[NGrams]  # n-grams of 1 to MAX_N words
    references: list[NGrams]


def count_ngrams(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CountedCaptions:
    """Count n-grams of 1 to MAX_N words, which any whitespace separates.

    Args:
        candidates: one tokenized caption for each image.
        references: the tokenized captions of each image.
    """
    if len(candidates) != len(references) or not all(references):
        raise ValueError(f"Expected at least one reference for each of {len(candidates)} candidates.")
    images = len(candidates)
    captions = [caption.split() for caption in candidates]
    captions += [caption.split() for group in references for caption in group]
    image_of_reference = np.repeat(np.arange(images), [len(group) for group in references])
    image_of_caption = np.concatenate([np.arange(images), image_of_reference])
    lengths = np.array([len(words) for words in captions], np.int64)
    vocabulary: dict[str, int] = {}
    words = np.array(
        [vocabulary.setdefault(word, len(vocabulary)) for caption in captions for word in caption], np.int64
    )
    caption_of_word = np.repeat(np.arange(len(captions)), lengths)
    words_left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # from here to the caption's end
    start = np.arange(len(words))
    ngram = words
    counted_candidates, counted_references = [], []
    for n in range(1, MAX_N + 1):
        if n > 1:
            longer = words_left[start] >= n
            start = start[longer]
            ngram = np.unique(ngram[longer] * len(vocabulary) + words[start + n - 1], return_inverse=True)[1]
        distinct = int(ngram.max(initial=-1)) + 1
        pairs, counts = np.unique(caption_of_word[start] * distinct + ngram, return_counts=True)
        caption = pairs // max(distinct, 1)
        counted = NGrams(caption, pairs - caption * distinct, counts, image_of_caption[caption], distinct)
        counted_candidates.append(counted.select(caption < images))
        counted_references.append(counted.select(caption >= images))
    return CountedCaptions(
        images, image_of_reference, lengths[:images], lengths[images:], counted_candidates, counted_references
    )
