"""Templates: render the fields of a record as token ids with a loss mask.

A template is selected by task name and configured by parameters:

    template = make_template("sft.qa", {"max_length": 100}, vocabulary)
    sample = template(fields, rng)  # sample.tokens, sample.loss_mask

All random choices are made first (`Template.choose`) and are plain data, so that rendering (`Template.render`) is
deterministic. The rules are those of the original's readers (spec D.3 and D.4); the phrases around a record are data
(`phrases.json`) and can be replaced.
"""

from seed_jax.data.templates.phrases import SHORT_ANSWER, Phrases
from seed_jax.data.templates.registry import TASKS, Template, make_template
from seed_jax.data.templates.sample import IGNORED, RenderedSample, TemplateOptions

__all__ = [
    "IGNORED",
    "SHORT_ANSWER",
    "TASKS",
    "Phrases",
    "RenderedSample",
    "Template",
    "TemplateOptions",
    "make_template",
]
