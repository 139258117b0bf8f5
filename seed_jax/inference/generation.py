"""What became of one prompt: ids, segments, and why the answer ended."""

import dataclasses

from seed_jax.data.vocab import Vocabulary
from seed_jax.inference.decoding import Answers
from seed_jax.inference.segments import Segment, TextSegment, parse
from seed_jax.inference.settings import Settings
from seed_jax.inference.stopping import cut


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was generated after one prompt.

    Attributes:
        ids: without the end of the sequence; with a forced `<img>`.
        segments: of the ids; a stop string that ended the answer, and what follows it in its last token, are cut off.
        stopped: "eos", "stop" (a stop string), "length" where the budget or the context was used up, "interrupted".
        score: of a beam search, log p / length ** penalty.
    """

    ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    stopped: str
    score: float | None = None

    @classmethod
    def of(cls, answers: Answers, row: int, settings: Settings, vocabulary: Vocabulary) -> "Generation":
        """Take a row of a program's answers, on the host; one that is not done was interrupted."""
        ids = tuple(map(int, answers.ids[row, : answers.counts[row]]))
        segments, stopped = parse(ids, vocabulary), "length" if answers.done[row] else "interrupted"
        if answers.ended[row]:
            stopped = "eos"
        elif answers.stopped[row]:
            stopped = "stop"
            if segments and isinstance(segments[-1], TextSegment):
                text = cut(segments[-1].text, settings.stop)
                segments[-1:] = [TextSegment(text)] if text else []
        score = None if answers.scores is None else float(answers.scores[row])
        return cls(ids, tuple(segments), stopped, score)
