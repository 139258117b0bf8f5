"""Read `manifest.toml`: every artefact that can be fetched, checked when it is read."""

import dataclasses
import difflib
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from seed_jax.errors import UserError
from seed_jax.files import read_text
from seed_jax.sizes import parse_size

FILE = Path(__file__).with_name("manifest.toml")
UNKNOWN = "unknown"
CONFIDENCE = ("confirmed", "copy", "memory", UNKNOWN)
GATED = ("no", "yes", UNKNOWN)
# Of an approximate size: pages print three digits, so that a larger difference is another file.
SIZE_TOLERANCE = 0.02
# Below this, files of the same name and use differ between mirrors (JSON printed otherwise): a warning only.
SMALL = 1_000_000
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class File:
    """One file to download.

    Attributes:
        path: relative path below the artefact's directory, with forward slashes.
        size: in bytes; None where no source states it.
        exact: whether `size` is exact; else it is accurate to three digits.
        sha256: 64 hexadecimal digits, or fewer where only the leading ones are known; None where unknown.
        confidence: one of CONFIDENCE, of the hash where there is one and else of the size.
        optional: fetched only on request.
    """

    path: str
    size: int | None
    exact: bool
    sha256: str | None
    confidence: str
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """One place that the files can come from.

    Attributes:
        kind: "hub" (a repository of the Hugging Face Hub), "url" (a folder on a web server) or "manual" (a page).
        where: the repository id, or the address.
        revision: of a hub repository: a commit id, its leading digits, or a branch.
        prefix: folder in the repository or below the address.
        paths: path of a file here by its path in the manifest, where they differ.
        confidence: one of CONFIDENCE.
        ungated_copy: a copy without the gate of the original, used only once the licence was accepted.
    """

    kind: str
    where: str
    revision: str | None = None
    prefix: str = ""
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    confidence: str = UNKNOWN
    ungated_copy: bool = False

    def path_of(self, path: str) -> str:
        """Return where the file `path` is in this source, relative to the repository or address."""
        return str(PurePosixPath(self.prefix) / self.paths.get(path, path))


@dataclasses.dataclass(frozen=True)
class WrongFile:
    """A file of the right name and the wrong content, known by (the leading digits of) its SHA-256."""

    sha256: str
    what: str


@dataclasses.dataclass(frozen=True)
class Artefact:
    """Files that belong together, and what is known about them.

    Attributes:
        name: what users type.
        needs: names of other artefacts without which this one cannot be imported; fetched with it.
        import_command: arguments of `seed-jax`, with placeholders; None where a config or an option takes the files.
        used_by: which command or config takes the files, where there is no import command.
        imported_size: bytes of the imported model where they differ from those of the files.
        unavailable: why it cannot be fetched; None where it can.
        notes: what is unconfirmed or easily mistaken, a sentence each.
    """

    name: str
    title: str
    purpose: str
    licence: str
    licence_confidence: str
    gated: str
    files: tuple[File, ...] = ()
    sources: tuple[Source, ...] = ()
    wrong: tuple[WrongFile, ...] = ()
    needs: tuple[str, ...] = ()
    import_command: tuple[str, ...] | None = None
    used_by: str | None = None
    imported_size: int | None = None
    unavailable: str | None = None
    notes: tuple[str, ...] = ()

    def selected_files(self, optional: bool = False) -> tuple[File, ...]:
        """Return the files to fetch: all, or those that are not optional."""
        return tuple(file for file in self.files if optional or not file.optional)

    def known_wrong(self, sha256: str) -> str | None:
        """Return what a wrong file with this hash is known to be."""
        return next((wrong.what for wrong in self.wrong if sha256.startswith(wrong.sha256)), None)

    def import_arguments(self, root: Path, out: Path) -> list[str] | None:
        """Return the arguments of `seed-jax` that import what was fetched below `root` to the model directory `out`."""
        if self.import_command is None:
            return None

        def value(match: re.Match[str]) -> str:
            return str(out if match[1] == "out" else root / match[1])

        return [_PLACEHOLDER.sub(value, argument) for argument in self.import_command]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A name for all artefacts of one complete model directory.

    Attributes:
        parts: artefact by role ("model", "tokenizer", "decoder").
        prompt_style: how chat prompts are written; None without a language model.
    """

    name: str
    title: str
    parts: Mapping[str, str]
    prompt_style: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All artefacts and bundles, by name."""

    artefacts: Mapping[str, Artefact]
    bundles: Mapping[str, Bundle]

    def resolve(self, names: Iterable[str]) -> list[Artefact]:
        """Return the artefacts of these names and bundles with all that they need, each once, in a stable order.

        Raises:
            UserError: a name is unknown (the nearest is suggested) or cannot be fetched.
        """
        resolved: dict[str, Artefact] = {}

        def add(name: str) -> None:
            if name in self.bundles:
                for part in self.bundles[name].parts.values():
                    add(part)
                return
            if name not in self.artefacts:
                raise UserError(f"Nothing is called {name!r}{self._nearest(name)}: `seed-jax fetch --list` names all.")
            artefact = self.artefacts[name]
            if artefact.unavailable:
                raise UserError(f"{name} cannot be fetched: {artefact.unavailable}.")
            if name not in resolved:
                resolved[name] = artefact
                for needed in artefact.needs:
                    add(needed)

        for name in names:
            add(name)
        return list(resolved.values())

    def _nearest(self, name: str) -> str:
        known = {key.lower(): key for key in (*self.bundles, *self.artefacts)}
        near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.5)
        return f" (did you mean {' or '.join(known[key] for key in near)}?)" if near else ""


@functools.cache
def load_manifest(path: Path = FILE) -> Manifest:
    """Read and check a manifest.

    Raises:
        UserError: the file is not valid; the message names the entry and the key.
    """
    try:
        table = _Table(tomllib.loads(read_text(path)), str(path))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not TOML
        raise UserError(f"Cannot read the manifest {path}: {error}.") from None
    artefacts = [_artefact(entry) for entry in table.tables("artefact", "name")]
    bundles = [_bundle(entry) for entry in table.tables("bundle", "name")]
    table.finish()
    names = [entry.name for entry in (*artefacts, *bundles)]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: the names {sorted(repeated)} occur twice.")
    manifest = Manifest({entry.name: entry for entry in artefacts}, {entry.name: entry for entry in bundles})
    for artefact in artefacts:
        _check_references(manifest, artefact, path)
    for bundle in bundles:
        if missing := [name for name in bundle.parts.values() if name not in manifest.artefacts]:
            raise UserError(f"{path}: bundle {bundle.name} names {missing[0]!r}, which is no artefact.")
    return manifest


class _Table:
    """A TOML table that is read key by key, so that a missing, mistyped or unknown key is an error with its place."""

    def __init__(self, values: dict[str, Any], where: str):
        self._values = dict(values)
        self.where = where

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.where}: {problem}.")

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        if key not in self._values:
            if default is ...:
                raise self.error(f"the key {key!r} is missing")
            return default
        value = self._values.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"{key} = {value!r} has the wrong type")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.take(key, str)
        if value not in choices:
            raise self.error(f"{key} = {value!r} is none of {', '.join(choices)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise self.error(f"{key} must be a list of texts")
        return tuple(values)

    def mapping(self, key: str, default: Any = ...) -> dict[str, str]:
        values = self.take(key, dict, default)
        if not all(isinstance(value, str) for value in values.values()):
            raise self.error(f"{key} must map texts to texts")
        return values

    def tables(self, key: str, label: str | None = None) -> list["_Table"]:
        entries = self.take(key, list, [])
        if not all(isinstance(entry, dict) for entry in entries):
            raise self.error(f"{key} must be an array of tables")
        return [
            _Table(entry, f"{self.where}, {key} {entry.get(label, index) if label else index}")
            for index, entry in enumerate(entries, 1)
        ]

    def relative(self, key: str, value: str) -> str:
        """Check that a path from the manifest stays below the directory it is joined to."""
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value:
            raise self.error(f"{key} = {value!r} must be a relative path with forward slashes")
        return value

    def finish(self) -> None:
        if self._values:
            raise self.error(f"the keys {sorted(self._values)} are unknown")


def _artefact(table: _Table) -> Artefact:
    command = table.texts("import")
    artefact = Artefact(
        name=table.relative("name", table.take("name", str)),
        title=table.take("title", str),
        purpose=table.take("purpose", str),
        licence=table.take("licence", str),
        licence_confidence=table.choice("licence_confidence", CONFIDENCE),
        gated=table.choice("gated", GATED),
        files=tuple(_file(entry) for entry in table.tables("file", "path")),
        sources=tuple(_source(entry) for entry in table.tables("source")),
        wrong=tuple(_wrong(entry) for entry in table.tables("wrong")),
        needs=table.texts("needs"),
        import_command=command or None,
        used_by=table.take("used_by", str, None),
        imported_size=_printed_size(table, "imported_size"),
        unavailable=table.take("unavailable", str, None),
        notes=table.texts("notes"),
    )
    table.finish()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", artefact.name):
        raise table.error("the name must consist of a-z, 0-9, '.' and '-'")
    if not artefact.unavailable:
        if not artefact.files or not artefact.sources:
            raise table.error("an artefact has files and sources, or says why it is unavailable")
        if (artefact.import_command is None) == (artefact.used_by is None):
            raise table.error("give either an import command or used_by")
    paths = [file.path for file in artefact.files]
    if len(set(paths)) != len(paths):
        raise table.error("a file is named twice")
    for source in artefact.sources:
        if unknown := set(source.paths) - set(paths):
            raise table.error(f"a source renames {sorted(unknown)}, which are no files of it")
    return artefact


def _printed_size(table: _Table, key: str) -> int | None:
    text = table.take(key, str, None)
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise table.error(str(error)) from None


def _file(table: _Table) -> File:
    size, exact = table.take("size", (int, str)), False
    if isinstance(size, str):
        try:
            size = None if size == UNKNOWN else parse_size(size)
        except UserError as error:
            raise table.error(str(error).removesuffix(".")) from None
    else:
        exact = True
        if size <= 0:
            raise table.error(f"size = {size} must be positive")
    sha256 = table.take("sha256", str)
    file = File(
        path=table.relative("path", table.take("path", str)),
        size=size,
        exact=exact,
        sha256=None if sha256 == UNKNOWN else _digits(table, sha256),
        confidence=table.choice("confidence", CONFIDENCE),
        optional=table.take("optional", bool, False),
    )
    table.finish()
    return file


def _source(table: _Table) -> Source:
    kinds = {kind: table.take(kind, str, None) for kind in ("hub", "url", "manual")}
    given = {kind: where for kind, where in kinds.items() if where is not None}
    if len(given) != 1:
        raise table.error("give exactly one of hub, url and manual")
    ((kind, where),) = given.items()
    revision = table.take("revision", str) if kind == "hub" else None
    if kind == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise table.error(f"hub = {where!r} is not a repository id such as 'owner/name'")
    if kind != "hub" and (urlsplit(where).scheme not in ("https", "http") or not urlsplit(where).netloc):
        raise table.error(f"{kind} = {where!r} is not an address that begins with https:// or http://")
    paths = table.mapping("paths", {})
    source = Source(
        kind=kind,
        where=where.rstrip("/"),
        revision=revision,
        prefix=table.relative("prefix", table.take("prefix", str, "")),
        paths={key: table.relative("paths", value) for key, value in paths.items()},
        confidence=table.choice("confidence", CONFIDENCE),
        ungated_copy=table.take("ungated_copy", bool, False),
    )
    table.finish()
    return source


def _wrong(table: _Table) -> WrongFile:
    wrong = WrongFile(_digits(table, table.take("sha256", str)), table.take("what", str))
    table.finish()
    return wrong


def _digits(table: _Table, text: str) -> str:
    """Return the known digits of a hash: all 64, or at least 8 leading ones that are followed by '...'."""
    if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{8,63}\.\.\.", text):
        raise table.error(f"sha256 = {text!r} is not 64 hexadecimal digits, leading digits and '...', or 'unknown'")
    return text.removesuffix("...")


def _bundle(table: _Table) -> Bundle:
    bundle = Bundle(
        name=table.take("name", str),
        title=table.take("title", str),
        parts=table.mapping("parts"),
        prompt_style=table.take("prompt_style", str, None),
    )
    table.finish()
    return bundle


def _check_references(manifest: Manifest, artefact: Artefact, path: Path) -> None:
    where = f"{path}, artefact {artefact.name}"
    if missing := [name for name in artefact.needs if name not in manifest.artefacts]:
        raise UserError(f"{where}: needs {missing[0]!r}, which is no artefact.")
    for argument in artefact.import_command or ():
        for placeholder in _PLACEHOLDER.findall(argument):
            if placeholder not in ("out", artefact.name, *artefact.needs):
                raise UserError(f"{where}: the import command uses {{{placeholder}}}, which is not among its needs.")
