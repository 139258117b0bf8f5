"""Foreign formats that `seed-jax data build` reads, one module each."""

from collections.abc import Sequence
from pathlib import Path

from seed_jax.data.sources.folder import FolderSource
from seed_jax.data.sources.units import Bad, InputFile, Raw, Source
from seed_jax.data.sources.webdataset import WebDatasetSource
from seed_jax.errors import UserError

__all__ = ["SOURCES", "Bad", "InputFile", "Raw", "Source", "open_source"]

SOURCES: dict[str, type] = {source.kind: source for source in (FolderSource, WebDatasetSource)}


def open_source(kind: str, paths: Sequence[str | Path]) -> Source:
    """Return the source of this kind over `paths`; UserError for an unknown kind or a missing path."""
    if kind not in SOURCES:
        raise UserError(f"There is no source of kind {kind!r}; there are {', '.join(sorted(SOURCES))}.")
    if not paths:
        raise UserError(f"A source of kind {kind!r} needs at least one path.")
    return SOURCES[kind](paths)
