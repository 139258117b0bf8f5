"""Parse nested mappings into frozen dataclasses, collecting every problem instead of stopping at the first."""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections

from seed_jax.errors import UserError

T = TypeVar("T", bound="Section")
Problems = Iterator[tuple[str, str]]
CANNOT_RUN = "The config cannot be run: "
_INT_LIMIT = 2**31  # of counters and array sizes on devices


class Section:
    """A group of options: a frozen dataclass whose fields all have defaults."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with its value) for values of the right type that cannot work."""
        yield from ()


def base(section: type[Section], **values: Any) -> ml_collections.ConfigDict:
    """Return every option of a section at its default, as a ConfigDict for a config file to fill in.

    Args:
        section: the dataclass of the stage, such as `LanguageConfig`.
        **values: top-level options that differ from their defaults.
    """
    return ml_collections.ConfigDict(dataclasses.asdict(section(**values)))  # pyright: ignore[reportArgumentType]


def to_dict(section: Section) -> dict[str, Any]:
    """Return the options as JSON gives them back: nested dicts, and lists in place of tuples."""
    return json.loads(json.dumps(dataclasses.asdict(section)))  # pyright: ignore[reportArgumentType]


def parse(section: type[T], values: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> T:
    """Turn a mapping into the dataclass.

    Missing options take their defaults.

    Args:
        section: the dataclass.
        values: options by name.
        prefix: of the options' names in messages, such as "tasks.vqav2.".

    Raises:
        UserError: one message that lists every unknown option, value of a wrong type and value that cannot work.
    """
    plain = values.to_dict() if isinstance(values, ml_collections.ConfigDict) else values
    problems: list[str] = []
    parsed = _parse(section, plain, prefix, problems)
    problems += _semantic_problems(parsed, prefix, {problem.split(" ", 1)[0] for problem in problems})
    if problems:
        raise UserError(f"{CANNOT_RUN}{'; '.join(problems)}.")
    return parsed


def _parse(section: type[T], values: Mapping[str, Any], prefix: str, problems: list[str]) -> T:
    hints = typing.get_type_hints(section)
    fields = [field.name for field in dataclasses.fields(section)]  # pyright: ignore[reportArgumentType]
    problems += [f"{prefix}{key} is not an option" for key in values if key not in fields]
    parsed = {}
    for name in (field for field in fields if field in values):
        hint, value = hints[name], values[name]
        if isinstance(hint, type) and issubclass(hint, Section):
            if isinstance(value, Mapping):
                parsed[name] = _parse(hint, value, f"{prefix}{name}.", problems)
            else:
                problems.append(f"{prefix}{name} is {value!r}, expected a group of options")
            continue
        converted = _convert(hint, value)
        if converted is _WRONG:
            problems.append(f"{prefix}{name} is {value!r}, expected {_describe(hint)}")
        else:
            parsed[name] = converted
    return section(**parsed)


_WRONG = object()


def _convert(hint: Any, value: Any) -> Any:
    """Return `value` as the annotated type, or _WRONG; an int is taken for a float, never a bool for an int.

    Floats are finite, and integers fit into 32 bits.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [_convert(argument, value) for argument in arguments]
        return next((option for option in options if option is not _WRONG), _WRONG)
    if hint is type(None):
        return None if value is None else _WRONG
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and abs(value) <= sys.float_info.max else _WRONG
    if hint is int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return value if is_integer and -_INT_LIMIT <= value < _INT_LIMIT else _WRONG
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return _WRONG
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        items = [_convert(kind, item) for kind, item in zip(kinds, value, strict=False)]
        return _WRONG if len(kinds) != len(value) or any(item is _WRONG for item in items) else tuple(items)
    if origin is not None and issubclass(origin, Mapping):
        value = value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
        return dict(value) if isinstance(value, Mapping) else _WRONG
    return value if hint is Any or isinstance(value, hint) else _WRONG


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        items = _describe(arguments[0])
        return f"a tuple of {count}{items if items.startswith('entries') else f'{items} values'}"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return 'entries {"option": value, ...}'
    if hint is float:
        return "a finite number"
    if hint is int:
        return "an integer of at most 32 bits"
    return getattr(hint, "__name__", str(hint))


def _semantic_problems(section: Section, prefix: str, reported: set[str]) -> list[str]:
    found = [f"{prefix}{name} {text}" for name, text in section.problems() if f"{prefix}{name}" not in reported]
    for field in dataclasses.fields(section):  # pyright: ignore[reportArgumentType]
        value = getattr(section, field.name)
        if isinstance(value, Section):
            found += _semantic_problems(value, f"{prefix}{field.name}.", reported)
    return found


def not_positive(section: Any, *names: str) -> Iterator[tuple[str, str]]:
    """Yield a problem for each of the fields that is not above 0."""
    for name in names:
        if not getattr(section, name) > 0:
            yield name, f"is {getattr(section, name)!r}, expected more than 0"


def negative(section: Any, *names: str) -> Iterator[tuple[str, str]]:
    """Yield a problem for each of the fields that is below 0 or not a number."""
    for name in names:
        if not getattr(section, name) >= 0:
            yield name, f"is {getattr(section, name)!r}, expected 0 or more"


def not_ratio(section: Any, *names: str) -> Iterator[tuple[str, str]]:
    """Yield a problem for each of the fields that is not within 0 to 1."""
    for name in names:
        if not 0 <= getattr(section, name) <= 1:
            yield name, f"is {getattr(section, name)!r}, expected 0 to 1"


def not_one_of(section: Any, **choices: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield a problem for each field whose value is not one of its choices."""
    for name, allowed in choices.items():
        if getattr(section, name) not in allowed:
            listed = ", ".join(choice or "''" for choice in allowed)
            yield name, f"is {getattr(section, name)!r}, expected one of {listed}"
