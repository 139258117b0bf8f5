"""Registry of templates: look up a task by name and configure it from plain data."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.templates import chat, continuation, conversation, instruct, pretrain, prompts
from seed_jax.data.templates.layout import Fields, RandomChoices, RenderContext, TaskDefinition
from seed_jax.data.templates.phrases import DEFAULT, Phrases
from seed_jax.data.templates.sample import RenderedSample, TemplateOptions, assemble
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError

TASKS: dict[str, type[TaskDefinition]] = {
    "pretrain.caption_eval_prompt": prompts.CaptionEvalPrompt,
    "pretrain.caption_text_only": prompts.CaptionTextOnly,
    "pretrain.edit": pretrain.Edit,
    "pretrain.image_text_pair": pretrain.ImageTextPair,
    "pretrain.interleaved": pretrain.Interleaved,
    "pretrain.retrieval_augmented": prompts.RetrievalAugmented,
    "pretrain.text": pretrain.Text,
    "pretrain.text_conversation": chat.PretrainTextConversation,
    "pretrain.video_caption": pretrain.VideoCaption,
    "pretrain.visual_question": chat.PretrainVisualQuestion,
    "seed1.caption": pretrain.Seed1Caption,
    "seed1.image": pretrain.Seed1Image,
    "sft.conversation": conversation.Conversation,
    "sft.difference": instruct.Difference,
    "sft.edit": instruct.Edit,
    "sft.edit_multi_turn": instruct.EditMultiTurn,
    "sft.interleaved": conversation.Interleaved,
    "sft.qa": instruct.Qa,
    "sft.story": instruct.Story,
    "sft.text_conversation": chat.TextConversation,
    "sft.video_conversation": conversation.VideoConversation,
    "sft.video_qa": conversation.VideoQa,
    "sft.visual_question": chat.VisualQuestion,
}


@dataclasses.dataclass(frozen=True)
class Template:
    """A configured template: renders the fields of records as samples; picklable.

        template = make_template("image_text_pair", {"max_length": 140}, vocabulary)
        sample = template({"image_ids": codes, "text": "A dog."}, np.random.default_rng(0))

    Attributes:
        name: full task name, as in `TASKS`.
        definition: parameters and rules of the task; the docstring of its class lists the fields of a record.
        options: parameters that all tasks share.
        vocab: the vocabulary of the tokens.
        phrases: the phrases around records.
    """

    name: str
    definition: TaskDefinition
    options: TemplateOptions
    vocab: Vocabulary
    phrases: Phrases

    def choose(self, fields: Fields, rng: np.random.Generator) -> dict[str, Any]:
        """Make all random choices for one record: a dict of names and outcomes."""
        return self.definition.choose(fields, self._context, rng)

    def render(self, fields: Fields, choice: RandomChoices) -> RenderedSample:
        """Render one record with given choices; UserError names a missing or invalid field."""
        layout = self.definition.render(fields, choice, self._context)
        return assemble(layout, self.vocab, self.options, getattr(self.definition, "eos_between_turns", False))

    def __call__(self, fields: Fields, rng: np.random.Generator) -> RenderedSample:
        return self.render(fields, self.choose(fields, rng))

    def samples(self, fields: Fields, rng: np.random.Generator) -> list[RenderedSample]:
        """Render one record; with `continued` a long document gives several samples, in order."""
        choice = self.choose(fields, rng)
        if not self.continued:
            return [self.render(fields, choice)]
        layout = self.definition.render(fields, choice, self._context)
        whole = assemble(layout, self.vocab, dataclasses.replace(self.options, max_length=None))
        max_length = self.options.max_length
        assert max_length is not None, "make_template requires max_length with continued"
        return continuation.continued(
            whole,
            self.vocab,
            max_length,
            text_first=choice.get("swap", False),
            max_images=getattr(self.definition, "max_images", None),
        )

    @property
    def continued(self) -> bool:
        """Whether long documents continue in further samples."""
        return getattr(self.definition, "continued", False)

    @property
    def _context(self) -> RenderContext:
        return RenderContext(self.phrases, self.options.strict_images)


def make_template(
    task: str, params: Mapping[str, Any], vocab: Vocabulary, phrases: Phrases | str | Path = DEFAULT
) -> Template:
    """Configure a template.

    Args:
        task: a key of `TASKS`; the part after the dot suffices if it is unique ("image_text_pair", "qa").
        params: parameters of the task and of `TemplateOptions`.
        vocab: the vocabulary to encode with.
        phrases: the phrases around records, or a file of them.

    Raises:
        UserError: unknown task, unknown parameter, or a parameter of the wrong type.
    """
    name = _full_name(task)
    definition = TASKS[name]
    own = typing.get_type_hints(definition)
    common = typing.get_type_hints(TemplateOptions)
    hints = {**common, **own}
    for key, value in params.items():
        if key not in hints:
            raise UserError(f"Task {name} has no parameter {key!r}: expected one of {', '.join(sorted(hints))}.")
        if not _fits(value, hints[key]):
            raise UserError(f"Parameter {key} of task {name} is {value!r}, expected {_describe(hints[key])}.")
    values = {key: _converted(value, hints[key]) for key, value in params.items()}
    try:
        template = Template(
            name=name,
            definition=definition(**{key: value for key, value in values.items() if key in own}),
            options=TemplateOptions(**{key: value for key, value in values.items() if key in common}),
            vocab=vocab,
            phrases=phrases if isinstance(phrases, Phrases) else Phrases.load(phrases),
        )
        if template.continued and (template.options.max_length or 0) < continuation.MIN_LENGTH:
            raise UserError(f"continued needs a max_length of at least {continuation.MIN_LENGTH}.")
        return template
    except UserError as error:
        raise UserError(f"Task {name}: {error}") from error


def _full_name(task: str) -> str:
    if task in TASKS:
        return task
    matching = [name for name in TASKS if name.partition(".")[2] == task]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UserError(f"Task {task!r} is ambiguous: write {' or '.join(matching)}.")
    raise UserError(f"Unknown task {task!r}: expected one of {', '.join(sorted(TASKS))}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config value has the type of a parameter: integers are accepted as floats, booleans are not."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, alternative) for alternative in typing.get_args(hint))
    if typing.get_origin(hint) is not None:  # a sequence of strings
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _converted(value: Any, hint: Any) -> Any:
    """Convert a config value to the type of the parameter."""
    return tuple(value) if isinstance(value, list) else float(value) if hint is float else value
