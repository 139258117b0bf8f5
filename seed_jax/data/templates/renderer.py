"""Templates for stored records: what a part of a mixture does with each of its records."""

import dataclasses

import numpy as np

from seed_jax.data.shards.records import Record
from seed_jax.data.templates import Sample, Task
from seed_jax.data.templates.record_fields import captioned, fields_of
from seed_jax.errors import UserError

QUESTION_TASKS = ("sft.qa", "sft.video_qa")


@dataclasses.dataclass(frozen=True)
class Renderer:
    """A template for stored records: `Renderer(task)(record, rng)` gives its samples; can be pickled.

    Most tasks give one sample; with `continued`, a long document gives several, to be trained one after the other.

    Attributes:
        question: asked where a record has none in its metadata, hence is a captioned image or video; its texts are
            captions, of which one is drawn as the answer. For sft.qa and sft.video_qa.
        suffix: put behind a record's own question, e.g. `templates.SHORT_ANSWER`.
    """

    task: Task
    question: str | None = None
    suffix: str = ""

    def __post_init__(self):
        if (self.question is not None or self.suffix) and self.task.name not in QUESTION_TASKS:
            raise UserError(f"Task {self.task.name} has no single question: leave question and suffix out.")

    def __call__(self, record: Record, rng: np.random.Generator) -> list[Sample]:
        if self.question is not None and "question" not in record.meta:
            fields = captioned(record, self.question, rng)
        else:
            fields = fields_of(record, self.task.name, rng)
            if isinstance(fields.get("question"), str):
                fields["question"] += self.suffix
        return self.task.samples(fields, rng)
