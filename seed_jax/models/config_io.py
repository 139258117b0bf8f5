"""Frozen dataclasses of model sizes to and from the plain dictionaries of a `config.json`."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from seed_jax.errors import UserError

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a (nested) dataclass into dictionaries, lists, numbers and strings."""
    return {field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[Config], data: Mapping, where: str = "config") -> Config:
    """Build `cls` from the result of `to_dict`, also after a round trip through JSON.

    Args:
        cls: a dataclass.
        data: one entry per field; no key may be unknown, and only fields with the metadata `optional` may be missing:
            they were added after models had been written, and their default describes those models.
        where: origin of the data in error messages, for instance a file name.

    Raises:
        UserError: lists every unknown, missing and wrongly typed key.
    """
    problems: list[str] = []
    config = _build(cls, data, "", problems)
    if config is None:
        raise UserError(f"{where} does not describe a {cls.__name__}: {'; '.join(problems)}.")
    return config


class SerializableConfig:
    """Base class of the frozen dataclasses of model sizes that a `config.json` stores."""

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as plain values for JSON."""
        return to_dict(self)

    @classmethod
    def from_dict(cls: type[Config], data: Any, where: str = "config") -> Config:
        """Build from the result of `to_dict`; arguments and errors as in `config_io.from_dict`."""
        return from_dict(cls, data, where)


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _build(cls: type[Config], data: Any, prefix: str, problems: list[str]) -> Config | None:
    """Build a dataclass, or append to `problems` and return None."""
    if not isinstance(data, Mapping):
        problems.append(f"key {prefix.rstrip('.')!r} should hold a dictionary, found {data!r}")
        return None
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    names = [field.name for field in fields]
    required = [field.name for field in fields if not field.metadata.get("optional")]
    problems += [f"unknown key {prefix + name!r}" for name in data if name not in names]
    problems += [f"missing key {prefix + name!r}" for name in required if name not in data]
    values = {name: _parse(hints[name], data[name], prefix + name, problems) for name in names if name in data}
    return None if problems else cls(**values)


def _parse(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(choice for choice in typing.get_args(hint) if choice is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{key}.", problems)
    if typing.get_origin(hint) is tuple:
        hint, value = tuple, tuple(value) if isinstance(value, (list, tuple)) else value
    if hint is float and type(value) is int:
        value = float(value)
    # `type`, not isinstance: True would pass for the number 1.
    if type(value) is not hint:
        problems.append(f"key {key!r} should hold a {hint.__name__}, found {value!r}")
    elif hint is float and not math.isfinite(value):  # JSON files may say NaN and Infinity
        problems.append(f"key {key!r} should hold a finite number, found {value!r}")
    return value
