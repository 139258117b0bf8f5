"""Text as it grows, in pieces that stay: nothing is shown that a later token or a stop string would take back."""

from collections.abc import Iterator, Sequence

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.segments import MalformedSegment, Segment, TextSegment, parse
from seed_jax.inference.generation.stop_strings import cut, held_back

UNFINISHED = "\ufffd"  # what decoding puts where a character's bytes are not all there yet


class Streamer:
    """Turns the ids generated so far into the segments, or pieces of text, that have not been shown yet."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str] = ()):
        self._vocabulary, self._stops = vocabulary, stops
        self._segments, self._characters = 0, 0  # whole segments shown, and characters of the next one

    def more(self, ids: Sequence[int]) -> Iterator[Segment]:
        """Yield what is new and certain after `ids`, all those generated so far."""
        segments = parse(ids, self._vocabulary)
        while self._segments < len(segments):
            segment, is_last = segments[self._segments], self._segments == len(segments) - 1
            if isinstance(segment, TextSegment):
                text = self._certain(segment.text) if is_last else segment.text
                yield from self._text(text)
            elif is_last and isinstance(segment, MalformedSegment):
                return  # an image that is not finished yet
            else:
                yield segment
            if is_last and isinstance(segment, TextSegment):
                return
            self._segments, self._characters = self._segments + 1, 0

    def rest(self, segments: Sequence[Segment]) -> Iterator[Segment]:
        """Yield what has not been shown of the finished answer."""
        for place in range(self._segments, len(segments)):
            segment = segments[place]
            yield from self._text(segment.text) if isinstance(segment, TextSegment) else [segment]
            self._segments, self._characters = place + 1, 0

    def _certain(self, text: str) -> str:
        text = cut(text, self._stops)
        text = text[: len(text) - held_back(text, self._stops)]
        return text.rstrip(UNFINISHED)

    def _text(self, text: str) -> Iterator[Segment]:
        if len(text) > self._characters:
            yield TextSegment(text[self._characters :])
            self._characters = len(text)
