"""What a model card states: read from config.json, the workdir's run.json, shard manifests, results and downloads."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.data.shards import manifest as shard_manifest
from seed_jax.errors import UserError
from seed_jax.hub.download import RECORD, read_record
from seed_jax.hub.manifest import Artefact, load_manifest

RUN, RESULTS = "run.json", "results.json"
ARTEFACTS = "artefacts"  # key of the provenance in config.json
_DEPTH = 6  # of models that models start from


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """One model directory or training workdir.

    Attributes:
        directory: as given.
        kind: of the model.
        sizes: model config.
        provenance: as `config.json` states it.
        artefacts: names in the download manifest, of this model and of those that it starts from.
        training: resolved config of the run; None for an imported model.
        data: component of the mixture -> facts.
        results: file -> content of evaluations beside the model.
    """

    directory: Path
    kind: str
    sizes: Mapping[str, Any]
    provenance: Mapping[str, Any]
    artefacts: tuple[str, ...]
    training: Mapping[str, Any] | None
    data: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Mapping[str, Any]]

    @property
    def description(self) -> str:
        """Name the kind."""
        return ModelKind(self.kind).description if self.kind in list(ModelKind) else self.kind


def read_facts(directory: str | Path) -> ModelFacts:
    """Collect what is known about a model directory or a training workdir.

    Raises:
        UserError: the directory holds no model.
    """
    directory = Path(directory)
    _, config = model_dir.read_config(directory)
    training = _read(directory / RUN)
    return ModelFacts(
        directory=directory,
        kind=config["kind"],
        sizes=config.get("sizes", {}),
        provenance=config.get("provenance", {}),
        artefacts=tuple(dict.fromkeys(_artefacts(directory))),
        training=training,
        data=_data(training or {}),
        results=read_results(directory),
    )


def origins(*paths: str | Path | None) -> list[str]:
    """Return the artefacts that `seed-jax fetch` recorded for these files and directories, for the provenance."""
    names = []
    for path in filter(None, paths):
        directory = Path(path) if Path(path).is_dir() else Path(path).parent
        with contextlib.suppress(UserError):  # a damaged record only hides where the files come from
            if (directory / RECORD).is_file() and (name := read_record(directory).get("artefact")):
                names.append(str(name))
    return list(dict.fromkeys(names))


def artefact(name: str) -> Artefact | None:
    """Look an artefact up in the packaged manifest."""
    return load_manifest().artefacts.get(name)


def _artefacts(directory: Path, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the artefacts of a model and of every model that its training config names."""
    try:
        _, config = model_dir.read_config(directory)
    except UserError:
        return
    yield from config.get("provenance", {}).get(ARTEFACTS, ())
    if depth:
        for path in _named_models(_read(directory / RUN) or {}):
            yield from _artefacts(path, depth - 1)


def _named_models(config: Any) -> Iterator[Path]:
    """Yield the values of a training config that name model directories."""
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _named_models(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _named_models(value)
    elif isinstance(config, str) and "/" in config:
        path = Path(config)
        with contextlib.suppress(OSError):  # such as a name that is too long
            if (path / model_dir.CONFIG).is_file() or (path / "model" / model_dir.CONFIG).is_file():
                yield path


def _data(training: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe the shards of the mixture; those that are not there any more by name only."""
    found = {}
    for component in training.get("data", {}).get("mixture", ()):
        facts = {key: component.get(key) for key in ("task", "weight")}
        path = Path(str(component.get("path", "")))
        try:
            manifest = shard_manifest.load(path)
        except (UserError, OSError):
            found[str(path)] = facts
            continue
        facts |= {"source": manifest.source, "records": manifest.records, **manifest.items}
        facts |= {"image tokenizer": manifest.tokenizer}
        found[str(path)] = facts
    return found


def read_results(directory: Path) -> dict[str, dict[str, Any]]:
    """Read the results of `seed-jax eval` and of the quickstart below the model's directory."""
    places = [directory / RESULTS, *sorted(directory.glob(f"eval*/{RESULTS}"))]
    return {str(path.relative_to(directory)): content for path in places if (content := _read(path)) is not None}


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none, since a card states only what is known."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
