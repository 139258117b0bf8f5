"""Frozen dataclasses of model sizes to and from the plain dictionaries of a `config.json`."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from seed_jax.errors import UserError

Config = TypeVar("Config")

# Sizes beyond these limits are refused before anything of that size is made: a damaged or hostile file could otherwise
# ask for a million layers, which take minutes to trace, or for more memory than there is.
MAX_SIZE = 2**20
MAX_ENTRIES = 16  # of a list: levels of a UNet, layers of an MLP
_MAX_SIZES = {
    **dict.fromkeys(("num_layers", "depth"), 1024),
    **dict.fromkeys(("layers_per_block", "transformer_layers"), 32),
    "num_train_timesteps": 100_000,
}
# Integers that are no sizes; all others are at least 1.
_FROM_ZERO = {"vocab_size", "steps_offset", "bos", "eos", "pad"}


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
        UserError: lists every unknown, missing and wrongly typed key, and every size that no model has.
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
        problems.append(f"key {prefix.rstrip('.')!r} should hold a dictionary, found {_shorten(data)}")
        return None
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    names = [field.name for field in fields]
    required = [field.name for field in fields if not field.metadata.get("optional")]
    problems += [f"unknown key {prefix + name!r}" for name in data if name not in names]
    problems += [f"missing key {prefix + name!r}" for name in required if name not in data]
    values = {}
    for field in fields:
        if field.name in data:
            value = data[field.name]
            # A default may lie outside the range of sizes: 0 code vectors are none.
            is_default = type(value) is type(field.default) and value == field.default
            values[field.name] = (
                value if is_default else _parse(hints[field.name], value, prefix + field.name, problems)
            )
    return None if problems else cls(**values)


def _parse(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(choice for choice in typing.get_args(hint) if choice is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{key}.", problems)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return _parse_tuple(typing.get_args(hint)[0], value, key, problems)
    hint = typing.get_origin(hint) or hint
    if hint is float and type(value) is int and value.bit_length() < 1000:
        value = float(value)
    # `type`, not isinstance: True would pass for the number 1.
    if type(value) is not hint:
        problems.append(f"key {key!r} should hold a {hint.__name__}, found {_shorten(value)}")
    elif problem := _range_problem(key.rpartition(".")[2], value):
        problems.append(f"key {key!r} should hold {problem}, found {_shorten(value)}")
    return value


def _parse_tuple(hint: Any, values: Any, key: str, problems: list[str]) -> Any:
    """Parse the elements of a list, which all have the type `hint`."""
    if len(values) > MAX_ENTRIES:
        problems.append(f"key {key!r} should hold at most {MAX_ENTRIES} entries, found {len(values)}")
        return ()
    return tuple(_parse(hint, value, key, problems) for value in values)


def _range_problem(name: str, value: Any) -> str | None:
    """Return what was expected instead of a number that no model has, or None."""
    if isinstance(value, float) and not math.isfinite(value):  # JSON files may say NaN and Infinity
        return "a finite number"
    if isinstance(value, float) and value < 0:
        return "a number of at least 0"
    if type(value) is int:
        low, high = 0 if name in _FROM_ZERO else 1, _MAX_SIZES.get(name, MAX_SIZE)
        if not low <= value <= high:
            return f"an integer from {low} to {high}"
    return None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
