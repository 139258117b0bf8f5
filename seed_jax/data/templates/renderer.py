"""Render stored records: what a mixture component does with each of its records."""

import dataclasses

import numpy as np

from seed_jax.data.shards.records import Record
from seed_jax.data.templates import RenderedSample, Template
from seed_jax.data.templates.record_fields import captioned, fields_of
from seed_jax.errors import UserError

QUESTION_TASKS = ("sft.qa", "sft.video_qa")


@dataclasses.dataclass(frozen=True)
class Renderer:
    """A template applied to stored records: `Renderer(template)(record, rng)` returns its samples; picklable.

    Most tasks give one sample per record; with `continued`, a long document gives several, to be trained in sequence.

    Attributes:
        template: the template.
        question: asked of records without a question in their metadata, which are captioned images or videos; one of
            their captions is drawn as the answer. For sft.qa and sft.video_qa only.
        suffix: appended to a record's own question, e.g. `templates.SHORT_ANSWER`.
    """

    template: Template
    question: str | None = None
    suffix: str = ""

    def __post_init__(self):
        if (self.question is not None or self.suffix) and self.template.name not in QUESTION_TASKS:
            raise UserError(f"Task {self.template.name} has no single question: omit question and suffix.")

    def __call__(self, record: Record, rng: np.random.Generator) -> list[RenderedSample]:
        if self.question is not None and "question" not in record.meta:
            fields = captioned(record, self.question, rng)
        else:
            fields = fields_of(record, self.template.name, rng)
            if isinstance(fields.get("question"), str):
                fields["question"] += self.suffix
        return self.template.samples(fields, rng)
