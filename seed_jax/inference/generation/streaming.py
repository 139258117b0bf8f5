"""Streaming of answers in pieces that are final: no later token or stop string takes a yielded piece back."""

from collections.abc import Iterator, Sequence

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.segments import MalformedSegment, Segment, TextSegment, parse_segments
from seed_jax.inference.generation.stop_strings import partial_stop_length, truncate_at_stop

REPLACEMENT_CHARACTER = "\ufffd"  # decoded in place of a character whose bytes are incomplete


class SegmentStreamer:
    """Turns the ids generated so far into segments, or pieces of text, that have not been yielded yet.

    Args:
        vocabulary: of the model.
        stop: stop strings of the request; text that may be the beginning of one is held back.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()):
        self._vocabulary = vocabulary
        self._stop = stop
        self._num_segments = 0  # complete segments yielded
        self._num_characters = 0  # characters yielded of the next segment

    def update(self, ids: Sequence[int]) -> Iterator[Segment]:
        """Yield what is new and final, given all ids generated so far."""
        segments = parse_segments(ids, self._vocabulary)
        while self._num_segments < len(segments):
            segment, is_last = segments[self._num_segments], self._num_segments == len(segments) - 1
            if isinstance(segment, TextSegment):
                yield from self._new_text(self._final_text(segment.text) if is_last else segment.text)
                if is_last:
                    return
            elif is_last and isinstance(segment, MalformedSegment):
                return  # an incomplete image
            else:
                yield segment
            self._num_segments += 1
            self._num_characters = 0

    def finish(self, segments: Sequence[Segment]) -> Iterator[Segment]:
        """Yield the rest of the finished answer."""
        for segment in segments[self._num_segments :]:
            yield from self._new_text(segment.text) if isinstance(segment, TextSegment) else [segment]
            self._num_segments += 1
            self._num_characters = 0

    def _final_text(self, text: str) -> str:
        text = truncate_at_stop(text, self._stop)
        text = text[: len(text) - partial_stop_length(text, self._stop)]
        return text.rstrip(REPLACEMENT_CHARACTER)

    def _new_text(self, text: str) -> Iterator[Segment]:
        if len(text) > self._num_characters:
            yield TextSegment(text[self._num_characters :])
            self._num_characters = len(text)
