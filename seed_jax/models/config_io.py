"""Frozen dataclasses of sizes to and from plain dictionaries, as they stand in a `config.json`."""

import dataclasses
import types
import typing
from collections.abc import Mapping

from seed_jax.errors import UserError


def to_dict(sizes) -> dict:
    """Turn a (nested) dataclass into dictionaries, lists, numbers and strings."""
    return {field.name: _plain(getattr(sizes, field.name)) for field in dataclasses.fields(sizes)}


def from_dict(cls, data: Mapping, where: str = "config"):
    """Build `cls` from what `to_dict` made; every unknown, missing and wrongly typed key is reported at once.

    Args:
        where: what the message calls the place of the keys, a file name for instance.
    """
    problems: list[str] = []
    sizes = _build(cls, data, "", problems)
    if problems:
        raise UserError(f"{where} does not describe a {cls.__name__}: {'; '.join(problems)}.")
    return sizes


def _plain(value):
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _build(cls, data, prefix: str, problems: list[str]):
    if not isinstance(data, Mapping):
        problems.append(f"key {prefix.rstrip('.')!r} should hold a dictionary, found {data!r}")
        return None
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    problems += [f"unknown key {prefix + name!r}" for name in data if name not in names]
    problems += [f"missing key {prefix + name!r}" for name in names if name not in data]
    values = {name: _value(hints[name], data[name], prefix + name, problems) for name in names if name in data}
    return None if problems else cls(**values)


def _value(hint, value, key: str, problems: list[str]):
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(choice for choice in typing.get_args(hint) if choice is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.", problems)
    if typing.get_origin(hint) is tuple:
        hint, value = tuple, tuple(value) if isinstance(value, (list, tuple)) else value
    if hint is float and type(value) is int:
        value = float(value)
    # `type`, not isinstance: True would pass for the number 1.
    if type(value) is not hint:
        problems.append(f"key {key!r} should hold a {hint.__name__}, found {value!r}")
    return value
