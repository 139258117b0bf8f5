"""Find config files, load them and override their options."""

import ast
import contextlib
import difflib
import importlib.util
import re
import traceback
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_collections

import seed_jax
from seed_jax.errors import UserError


def config_directory() -> Path:
    """Return the directory of the packaged configs: installed beside the package's modules, or in a checkout."""
    package = Path(seed_jax.__path__[0])
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def resolve(name: str) -> tuple[Path, str]:
    """Split `FILE[:VARIANT]` or `NAME[:VARIANT]` into a config file and a variant, "" for the file's default.

    A path that exists is taken as it is; otherwise the last part names one of the packaged configs, so that both
    `configs/pretrain.py:tiny` and `pretrain:tiny` work from any directory.

    Raises:
        UserError: there is neither such a file nor such a packaged config.
    """
    path, _, variant = name.partition(":")
    file = Path(path)
    if file.is_file():
        return file, variant
    stem = file.name.removesuffix(".py")
    packaged = config_directory() / f"{stem}.py"
    if packaged.is_file() and str(file.parent) in (".", "configs"):
        return packaged, variant
    known = sorted(path.stem for path in config_directory().glob("*.py") if path.stem != "__init__")
    near = difflib.get_close_matches(stem, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"packaged configs are {', '.join(known)}."
    shown = name.partition(":")[0] or "''"
    raise UserError(f"Config {shown} is neither a file nor a packaged config; {hint}")


def default_workdir(name: str) -> Path:
    """Return where a run is kept when no workdir is given: `runs/<config>[_<variant>]`."""
    file, variant = resolve(name)
    return Path("runs") / (f"{file.stem}_{variant}" if variant else file.stem)


def resolve_workdir(workdir: str | None, config: str) -> Path | str:
    """Return the workdir that `--workdir` names, or the default of a config where the option is not given."""
    if workdir is None:
        return default_workdir(config)
    if not workdir.strip():
        raise UserError("--workdir is empty: name a directory, or leave the option out.")
    return workdir


def load_module(file: Path) -> types.ModuleType:
    """Run a config file and return its module."""
    spec = importlib.util.spec_from_file_location(f"seed_jax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"Config {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    with config_errors_named(file):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def config_errors_named(file: Path) -> Iterator[None]:
    """Turn whatever a config file raises into one sentence with the line of the file."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise UserError(f"Config {file} cannot be read: {describe_config_error(error, file)}.") from error


def describe_config_error(error: Exception, file: Path) -> str:
    """Return what a config file raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file.absolute()]
    if isinstance(error, SyntaxError):
        lines, text = [error.lineno], error.msg
    else:
        text = str(error).strip().split("\n")[0]
    place = f"line {lines[-1]}: " if lines and lines[-1] else ""
    return f"{place}{type(error).__name__}: {text}".removesuffix(".")


def load_neighbor(file: str, name: str) -> types.ModuleType:
    """Return another config file's module; for config files, which cannot import one another.

    Args:
        file: `__file__` of the config that asks.
        name: the other file without `.py`, relative to the directory of the first, such as "pretrain".
    """
    return load_module(Path(file).parent / f"{name}.py")


def load_config(name: str, overrides: Iterable[str] = (), *, option: str = "") -> ml_collections.ConfigDict:
    """Load a config and change some of its options.

    Args:
        name: `FILE[:VARIANT]` or the name of a packaged config, see `resolve`.
        overrides: "dotted.key=value" each; values are Python literals or else strings.
        option: what stands before a key on the command line, such as "--config."; for error messages.

    Raises:
        UserError: the file, the variant, a key or the type of a value is wrong.
    """
    file, variant = resolve(name)
    module = load_module(file)
    if not hasattr(module, "get_config"):
        raise UserError(f"Config {file} has no get_config function.")
    with config_errors_named(file):
        config = module.get_config(variant) if variant else module.get_config()
    for pair in overrides:
        key, separator, text = pair.partition("=")
        if not separator or not key.strip():
            raise UserError(f"{pair!r} is not an override: expected KEY=VALUE.")
        override(config, key.strip(), text.strip(), option)
    return config


def override(config: ml_collections.ConfigDict, key: str, text: str, option: str = "") -> None:
    """Set an existing option of a config to the value that a command line gives.

    Args:
        config: the config.
        key: dotted, such as "optimizer.peak_lr".
        text: a Python literal, or else a string.
        option: what stands before the key on the command line.
    """
    *groups, last = key.split(".")
    group: Any = config
    for name in groups:
        group = group[name] if isinstance(group, ml_collections.ConfigDict) and name in group else None
    if not isinstance(group, ml_collections.ConfigDict) or last not in group:
        near = difflib.get_close_matches(key, option_names(config), 1)
        hint = f": did you mean {option}{near[0]}?" if near else "; see the config file for its options."
        raise UserError(f"{option}{key} is not an option of the config{hint}")
    group[last] = _convert(f"{option}{key}", text, group[last])


def _convert(key: str, text: str, current: Any) -> Any:
    if isinstance(current, ml_collections.ConfigDict):
        raise UserError(f"{key} is a group of options: set one of {', '.join(f'{key}.{name}' for name in current)}.")
    if isinstance(current, str):
        quoted = re.fullmatch(r"""(["'])(.*)\1""", text)
        return quoted[2] if quoted else text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deeply
        value = text
    if isinstance(current, bool) and str(value).lower() in ("true", "false"):
        value = str(value).lower() == "true"
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    if current is not None and type(value) is not type(current):
        example = f"value of type {type(current).__name__} such as {current!r}"
        expected = "tuple of entries: (ENTRY, ENTRY, ...)" if isinstance(current, tuple) else example
        raise UserError(f"{key} is {text!r}, expected a {expected}.")
    return value


def option_names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    """Return the dotted names of all options."""
    names = []
    for key, value in config.items():
        nested = isinstance(value, ml_collections.ConfigDict)
        names += option_names(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return names
