"""Foreign formats that `seed-jax data build` reads, one module each."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.captions import CaptionsSource
from seed_jax.data.sources.coco import CocoSource
from seed_jax.data.sources.edits import EditsSource
from seed_jax.data.sources.folder import FolderSource
from seed_jax.data.sources.llava import LlavaSource
from seed_jax.data.sources.mimicit import MimicItSource
from seed_jax.data.sources.mmc4 import Mmc4Source
from seed_jax.data.sources.obelics import ObelicsSource
from seed_jax.data.sources.parquet import ParquetSource
from seed_jax.data.sources.pickles import PicklesSource
from seed_jax.data.sources.text import TextSource
from seed_jax.data.sources.tfds import TfdsSource
from seed_jax.data.sources.units import Bad, InputFile, Raw, Source
from seed_jax.data.sources.videos import VideosSource
from seed_jax.data.sources.vist import VistSource
from seed_jax.data.sources.vqa import VqaSource
from seed_jax.data.sources.webdataset import WebDatasetSource
from seed_jax.data.sources.world import WorldSource
from seed_jax.errors import UserError

__all__ = ["SOURCES", "Bad", "InputFile", "Raw", "Source", "open_source", "options_of"]

_ALL = (
    CaptionsSource,
    CocoSource,
    EditsSource,
    FolderSource,
    LlavaSource,
    MimicItSource,
    Mmc4Source,
    ObelicsSource,
    ParquetSource,
    PicklesSource,
    TextSource,
    TfdsSource,
    VideosSource,
    VistSource,
    VqaSource,
    WebDatasetSource,
    WorldSource,
)
SOURCES: dict[str, type] = {source.kind: source for source in _ALL}


def options_of(kind: str) -> tuple[str, ...]:
    """Return the names of the options that a kind of source takes."""
    return tuple(name for name in inspect.signature(SOURCES[kind]).parameters if name != "paths")


def open_source(kind: str, paths: Sequence[str | Path], **options: Any) -> Source:
    """Return the source of this kind over `paths`; UserError for an unknown kind or option, or a missing path.

    Args:
        options: those of the source's class; one that is None counts as not given.
    """
    if kind not in SOURCES:
        raise UserError(f"There is no source of kind {kind!r}; there are {', '.join(sorted(SOURCES))}.")
    if not paths:
        raise UserError(f"A source of kind {kind!r} needs at least one path.")
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := [name for name in given if name not in options_of(kind)]:
        takes = ", ".join(f"--{name}" for name in options_of(kind)) or "no options"
        raise UserError(f"A source of kind {kind!r} has no --{', --'.join(unknown)}; it takes {takes}.")
    return SOURCES[kind](paths, **given)
