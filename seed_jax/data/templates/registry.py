"""Find a template by name and set it up from a config: `make("image_text_pair", {"max_length": 140}, vocab)`."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.templates import chat, continuation, conversation, instruct, pretrain, prompts
from seed_jax.data.templates.layout import Choice, Fields, Setting
from seed_jax.data.templates.phrases import DEFAULT, Phrases
from seed_jax.data.templates.sample import Options, Sample, assemble
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError

TASKS: dict[str, type] = {
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
class Task:
    """A template with its parameters: records to samples; can be pickled.

    Attributes:
        name: full name, as in `TASKS`.
        recipe: the task's own parameters and rules; the docstring of its class says which fields a record needs.
    """

    name: str
    recipe: Any
    options: Options
    vocab: Vocabulary
    phrases: Phrases

    def choose(self, fields: Fields, rng: np.random.Generator) -> dict[str, Any]:
        """Make the random decisions for one record: names and outcomes, the only randomness there is."""
        return self.recipe.choose(fields, self._setting, rng)

    def render(self, fields: Fields, choice: Choice) -> Sample:
        """Render one record with given decisions; UserError names the field that is missing or wrong."""
        layout = self.recipe.render(fields, choice, self._setting)
        return assemble(layout, self.vocab, self.options, getattr(self.recipe, "eos_between_turns", False))

    def __call__(self, fields: Fields, rng: np.random.Generator) -> Sample:
        return self.render(fields, self.choose(fields, rng))

    def samples(self, fields: Fields, rng: np.random.Generator) -> list[Sample]:
        """Render one record; with `continued` a long document gives several samples, in its order."""
        choice = self.choose(fields, rng)
        if not self.continued:
            return [self.render(fields, choice)]
        layout = self.recipe.render(fields, choice, self._setting)
        whole = assemble(layout, self.vocab, dataclasses.replace(self.options, max_length=None))
        length, most = self.options.max_length, getattr(self.recipe, "max_images", None)
        return continuation.continued(whole, self.vocab, length, text_first=choice.get("swap", False), max_images=most)

    @property
    def continued(self) -> bool:
        return getattr(self.recipe, "continued", False)

    @property
    def _setting(self) -> Setting:
        return Setting(self.phrases, self.options.strict_images)


def make(task: str, params: Mapping[str, Any], vocab: Vocabulary, phrases: Phrases | str | Path = DEFAULT) -> Task:
    """Set up a template; UserError names an unknown task or parameter and lists those there are.

    Args:
        task: a name of `TASKS`; the part after the dot is enough where only one has it ("image_text_pair", "qa").
        params: the task's parameters and those of `Options`.
        phrases: the sentences to use, or a file of them.
    """
    name = _full_name(task)
    recipe = TASKS[name]
    own, common = typing.get_type_hints(recipe), typing.get_type_hints(Options)
    hints = {**common, **own}
    for key, value in params.items():
        if key not in hints:
            raise UserError(f"Task {name} has no parameter {key!r}; it has {', '.join(sorted(hints))}.")
        if not _fits(value, hints[key]):
            raise UserError(f"Parameter {key} of task {name} is {value!r}, expected {_spelled(hints[key])}.")
    values = {key: _taken(value, hints[key]) for key, value in params.items()}
    try:
        made = Task(
            name=name,
            recipe=recipe(**{key: value for key, value in values.items() if key in own}),
            options=Options(**{key: value for key, value in values.items() if key in common}),
            vocab=vocab,
            phrases=phrases if isinstance(phrases, Phrases) else Phrases.load(phrases),
        )
        if made.continued and (made.options.max_length or 0) < continuation.MIN_LENGTH:
            raise UserError(f"continued needs max_length, at least {continuation.MIN_LENGTH}.")
        return made
    except UserError as error:
        raise UserError(f"Task {name}: {error}") from error


def _full_name(task: str) -> str:
    if task in TASKS:
        return task
    named = [name for name in TASKS if name.partition(".")[2] == task]
    if len(named) == 1:
        return named[0]
    if named:
        raise UserError(f"Task {task!r} is not unique: write {' or '.join(named)}.")
    raise UserError(f"There is no task {task!r}; there are {', '.join(sorted(TASKS))}.")


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a config value has the type of a parameter: whole numbers count as numbers, booleans do not."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is not None:  # a sequence of texts
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _taken(value: Any, hint: Any) -> Any:
    """Return a config value as the parameter holds it."""
    return tuple(value) if isinstance(value, list) else float(value) if hint is float else value
