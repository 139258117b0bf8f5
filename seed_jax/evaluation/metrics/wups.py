"""WUPS, the score of open-ended NExT-QA: Wu-Palmer similarity of the words of an answer, from WordNet's own files.

The database is a directory with the files `index.noun`, `data.noun`, `noun.exc` and so on, as WordNet 3.0 installs
them; nothing is downloaded. Similarities equal those of NLTK. NExT-OE's script reduces words to lemmas with a
part-of-speech tagger, which belongs to no such directory: here the forms of WordNet's morphology are tried, of words in
-ing and -ed those of verbs first. Values can therefore differ slightly from its own.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from seed_jax.errors import UserError

# Part of speech -> suffix of its files; in the order in which a word's senses are listed.
_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# Part of speech -> endings that are replaced to find a lemma.
_ENDINGS = {
    "n": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
        ("men", "man"), ("ies", "y"),
    ),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}  # fmt: skip
# NLTK's English list without those that change an answer: against between before after above below up down in out on
# off over under once both few more no nor not same by.
_STOP_WORDS = """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his
    himself she she's her hers herself it it's its itself they them their theirs themselves what which who whom this
    that that'll these those am is are was were be been being have has had having do does did doing a an the and but if
    or because as until while of at for with about into through during to from again further then here there when where
    why how all any each most other some such only own so than too very s t can will just don don't should should've
    now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't
    isn isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won
    won't wouldn wouldn't"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
EXACT_TYPES = ("DC", "DB")  # questions for a number or for yes and no
_ROOT = "*ROOT*"  # joins the taxonomies of verbs, which have no common root

Key = tuple[str, int]
"""Part of speech and offset of a synset."""


@dataclasses.dataclass(frozen=True)
class _Synset:
    """A set of synonyms: its name, such as "dog.n.01", and its direct hypernyms."""

    name: str
    hypernyms: tuple[Key, ...]


class WordNet:
    """WordNet's database.

    Example:
        wordnet = WordNet.load(Path("/usr/share/wordnet"))
        wordnet.similarity("dog", "cat")  # 0.857

    Args:
        index: part of speech -> lemma -> offsets of its synsets, the most frequent sense first.
        synsets: the synsets.
        exceptions: part of speech -> irregular form -> lemmas.
    """

    def __init__(
        self,
        index: dict[str, dict[str, list[int]]],
        synsets: dict[Key, _Synset],
        exceptions: dict[str, dict[str, list[str]]],
    ):
        self._index, self._synsets, self._exceptions = index, synsets, exceptions

    @classmethod
    @functools.cache
    def load(cls, directory: Path) -> "WordNet":
        """Read the database.

        Raises:
            UserError: a file is missing or no file of WordNet's.
        """
        index, synsets, exceptions = {}, {}, {}
        for pos, name in _FILES.items():
            index[pos] = {
                row[0]: _offsets(row, directory / f"index.{name}") for row in _rows(directory, f"index.{name}")
            }
            exceptions[pos] = {row[0]: row[1:] for row in _rows(directory, f"{name}.exc")}
            path = directory / f"data.{name}"
            for row in _rows(directory, f"data.{name}"):
                offset, synset = _synset(row, path, index[pos])
                synsets[pos, offset] = synset
        return cls(index, synsets, exceptions)

    def forms(self, word: str, pos: str) -> list[str]:
        """Return the lemmas of a part of speech that a word may be a form of, the word itself first."""
        if word in self._exceptions[pos]:
            candidates = self._exceptions[pos][word]
        else:
            candidates = [word[: -len(old)] + new for old, new in _ENDINGS[pos] if word.endswith(old)]
        return list(dict.fromkeys(form for form in (word, *candidates) if form in self._index[pos]))

    def lemma(self, word: str) -> str:
        """Return the lemma of a word, or the word if it is unknown."""
        order = "vnar" if word.endswith(("ing", "ed")) else "nvar"
        for pos in order:
            found = self.forms(word, pos)
            if found:
                return min(found, key=len)
        return word

    def similarity(self, one: str, other: str) -> float:
        """Return 1 for equal words, else the Wu-Palmer similarity of their first senses; 0 if they have none."""
        if one == other:
            return 1.0
        return self._similarity(one, other)

    @functools.cache  # noqa: B019 - as long as the database, of which there is one
    def _similarity(self, one: str, other: str) -> float:
        first, second = self._first_sense(one), self._first_sense(other)
        if first is None or second is None:
            return 0.0
        value = self._wu_palmer(first, second)
        return 0.0 if value is None else value

    def _first_sense(self, word: str) -> Key | None:
        senses = (
            (pos, offset) for pos in _FILES for form in self.forms(word, pos) for offset in self._index[pos][form]
        )
        return next(senses, None)

    def _wu_palmer(self, first: Key, second: Key) -> float | None:
        """Return the similarity by the depth of the deepest common hypernym; None without one."""
        with_root = "n" not in (first[0], second[0]) or first[0] != second[0]
        paths = self._distances(first, with_root), self._distances(second, with_root)
        common = [key for key in paths[0] if key in paths[1]]
        if not common:
            return None
        deepest = max(self._depth(key, min) for key in common)
        candidates = [key for key in common if self._depth(key, min) == deepest]
        subsumer = first if first in candidates else min(candidates, key=self._name)
        depth = self._depth(subsumer, max) + 1
        # The shortest way to the subsumer may go over one of its own hypernyms.
        above = self._distances(subsumer, with_root)
        steps = sum(min(path[key] + above[key] for key in path if key in above) for path in paths)
        return 2.0 * depth / (steps + 2 * depth)

    def _distances(self, key: Key, with_root: bool) -> dict[Key, int]:
        """Return the steps from a synset to each of its hypernyms."""
        distances: dict[Key, int] = {}
        queue = collections.deque([(key, 0)])
        while queue:
            current, steps = queue.popleft()
            if current not in distances:
                distances[current] = steps
                queue.extend((hypernym, steps + 1) for hypernym in self._hypernyms(current))
        if with_root and key[0] != _ROOT:
            distances[_ROOT, 0] = max(distances.values()) + 1
        return distances

    def _depth(self, key: Key, choose) -> int:
        """Return the length of the shortest (`min`) or longest (`max`) path to the top."""
        hypernyms = self._hypernyms(key)
        return 1 + choose(self._depth(hypernym, choose) for hypernym in hypernyms) if hypernyms else 0

    def _hypernyms(self, key: Key) -> tuple[Key, ...]:
        return () if key[0] == _ROOT else self._synsets[key].hypernyms

    def _name(self, key: Key) -> str:
        return _ROOT if key[0] == _ROOT else self._synsets[key].name


def content_words(text: str, wordnet: WordNet) -> list[str]:
    """Return the lemmas of a text without stop words."""
    lemmas = (wordnet.lemma(word) for word in re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower()))
    return [lemma for lemma in lemmas if lemma not in STOP_WORDS]


def wups(prediction: str, answer: str, question_type: str, wordnet: WordNet, alpha: float = 0.0) -> float:
    """Return the score of an answer from 0 to 1.

    Args:
        prediction: the generated answer.
        answer: the true one.
        question_type: of NExT-OE; questions for numbers and for yes or no want equal answers.
        wordnet: the database.
        alpha: similarities below it count a tenth.
    """
    predicted, true = content_words(prediction, wordnet), content_words(answer, wordnet)
    if question_type in EXACT_TYPES:
        return float(predicted == true)
    return min(_one_way(predicted, true, wordnet, alpha), _one_way(true, predicted, wordnet, alpha))


def _one_way(words: Sequence[str], others: Sequence[str], wordnet: WordNet, alpha: float) -> float:
    """Return the product of each word's best similarity; words without any are skipped."""
    score, found = 1.0, False
    for word in words:
        similarities = (wordnet.similarity(word, other) for other in others)
        best = max((value if value >= alpha else 0.1 * value for value in similarities), default=0.0)
        if best > 0:
            score, found = score * best, True
    return score if found else 0.0


def _rows(directory: Path, name: str) -> Iterator[list[str]]:
    """Yield the words of each line of a file of the database, without the licence at its start."""
    path = directory / name
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.startswith(" ") and line.strip():
                    yield line.split(" | ", 1)[0].split()
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: give the directory of WordNet's database files (index.noun, data.noun, ...) with"
            " --wordnet."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give WordNet's database files with --wordnet.") from error


def _offsets(row: Sequence[str], path: Path) -> list[int]:
    """Return the synsets of a line of an index: lemma, part of speech, their number, pointers, counts, offsets."""
    try:
        return [int(offset) for offset in row[-int(row[2]) :]]
    except (ValueError, IndexError) as error:
        raise _damaged(path, row) from error


def _synset(row: Sequence[str], path: Path, index: dict[str, list[int]]) -> tuple[int, _Synset]:
    """Return offset and synset of a line: offset, file number, type, words in hexadecimal number, pointers."""
    try:
        offset, kind, count = int(row[0]), row[2], int(row[3], 16)
        lemma = re.sub(r"\((?:a|p|ip)\)$", "", row[4]).lower()
        pointers = row[5 + 2 * count : 5 + 2 * count + 4 * int(row[4 + 2 * count])]
        parts = zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
        hypernyms = tuple((pos, int(target)) for symbol, target, pos in parts if symbol in ("@", "@i"))
        return offset, _Synset(f"{lemma}.{kind}.{index[lemma].index(offset) + 1:02d}", hypernyms)
    except (ValueError, IndexError, KeyError) as error:
        raise _damaged(path, row) from error


def _damaged(path: Path, row: Sequence[str]) -> UserError:
    return UserError(f"{path} has the line {' '.join(row[:6])} ..., which is not WordNet's format: restore the file.")
