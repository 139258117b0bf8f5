"""Count the n-grams of tokenized captions."""

from collections import Counter

NGram = tuple[str, ...]


def ngram_counts(words: list[str], max_n: int = 4) -> Counter[NGram]:
    """Count the n-grams of 1 to max_n words."""
    counts: Counter[NGram] = Counter()
    for n in range(1, max_n + 1):
        counts.update(zip(*(words[start:] for start in range(n)), strict=False))
    return counts
