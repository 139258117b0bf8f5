"""Foreign formats that `seed-jax data build` reads: one module each, imported on use."""

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.samples import InputFile, RawSample, SkippedSample, Source
from seed_jax.errors import UserError

__all__ = ["SOURCES", "InputFile", "RawSample", "SkippedSample", "Source", "open_source", "options_of", "source_class"]

SOURCES: dict[str, str] = {
    "captions": "CaptionsSource",
    "coco": "CocoSource",
    "edits": "EditsSource",
    "folder": "FolderSource",
    "llava": "LlavaSource",
    "mimicit": "MimicItSource",
    "mmc4": "Mmc4Source",
    "obelics": "ObelicsSource",
    "parquet": "ParquetSource",
    "pickles": "PicklesSource",
    "text": "TextSource",
    "tfds": "TfdsSource",
    "videos": "VideosSource",
    "vist": "VistSource",
    "vqa": "VqaSource",
    "webdataset": "WebDatasetSource",
    "world": "WorldSource",
}
"""Kind of source -> class in the module of that name."""


def source_class(kind: str) -> type:
    """Return the class of a kind of source; UserError for an unknown kind."""
    if kind not in SOURCES:
        raise UserError(f"{kind!r} is not a kind of source: expected one of {', '.join(sorted(SOURCES))}.")
    return getattr(importlib.import_module(f"{__name__}.{kind}"), SOURCES[kind])


def options_of(kind: str) -> tuple[str, ...]:
    """Return the names of the options that a kind of source takes."""
    return tuple(name for name in inspect.signature(source_class(kind)).parameters if name != "paths")


def open_source(kind: str, paths: Sequence[str | Path], **options: Any) -> Source:
    """Open input files as a source.

        source = open_source("vqa", ["questions.json"], images="photos")

    Args:
        kind: a key of `SOURCES`.
        paths: files and folders.
        options: arguments of the source's class; None means not given.

    Raises:
        UserError: unknown kind or option, or missing path.
    """
    cls = source_class(kind)
    if not paths:
        raise UserError(f"A source of kind {kind!r} needs at least one path.")
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := [name for name in given if name not in options_of(kind)]:
        takes = ", ".join(f"--{name}" for name in options_of(kind)) or "no options"
        raise UserError(f"A source of kind {kind!r} has no --{', --'.join(unknown)}: it takes {takes}.")
    return cls(paths, **given)
