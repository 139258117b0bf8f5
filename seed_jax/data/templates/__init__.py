"""Templates: from a record's fields to token ids and what is trained of them.

A task is a name, parameters and fields: `make("sft.qa", {"max_length": 100}, vocab)(fields, rng)`. All random decisions
are made first (`Task.choose`) and are plain data, so that rendering itself (`Task.render`) has no chance in it.

The rules are those of the original's readers, spec D.3 and D.4; the sentences around a record are data of their own
(`phrases.json`) and can be replaced.
"""

from seed_jax.data.templates.phrases import SHORT_ANSWER, Phrases
from seed_jax.data.templates.registry import TASKS, Task, make
from seed_jax.data.templates.sample import IGNORED, Options, Sample

__all__ = ["IGNORED", "SHORT_ANSWER", "TASKS", "Options", "Phrases", "Sample", "Task", "make"]
