"""`seed-jax verify official`: compare an imported official model with PyTorch on fixed inputs, in one report.

Where the files that a part was imported from are still there, every tensor is compared with them too. Otherwise the
part is exported to a temporary directory, from which PyTorch runs it.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import DECODERS, LANGUAGE_MODELS, ModelKind
from seed_jax.checkpoint.lazy import load_on_device
from seed_jax.convert.diffusion import parity as decoder_parity
from seed_jax.convert.diffusion.diffusers_export import export_stable_diffusion, export_unclip
from seed_jax.convert.hugging_face import parity
from seed_jax.convert.hugging_face.export import export_language_model
from seed_jax.convert.llama.hf_export import LLAMA
from seed_jax.convert.merging import cast_params
from seed_jax.convert.opt.hf_export import OPT
from seed_jax.convert.parity import Check, ParityReport
from seed_jax.convert.tensors import open_tensors
from seed_jax.convert.tokenizer import parity as tokenizer_parity
from seed_jax.convert.tokenizer.official_export import open_official
from seed_jax.convert.tokenizer.official_import import with_vit
from seed_jax.errors import UserError
from seed_jax.files import write_text
from seed_jax.hub.download import DOWNLOADS, RECORD, read_record
from seed_jax.inference.language_model import read_references

_LAYOUTS = {ModelKind.LLAMA: LLAMA, ModelKind.OPT: OPT}


@dataclasses.dataclass(frozen=True)
class OfficialReport:
    """The comparisons of all parts, and the files that they were imported from.

    Attributes:
        parts: by model directory.
        files: a line per official file, with its SHA-256.
    """

    parts: dict[str, ParityReport]
    files: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(report.passed for report in self.parts.values())

    def markdown(self, environment: list[str]) -> str:
        """Return the page; `environment` describes the machine."""
        verdict = "passed" if self.passed else "FAILED"
        lines = [f"# Official model against PyTorch: {verdict}", "", "```text", *environment, "```", ""]
        if self.files:
            lines += ["| official file | SHA-256 | from |", "|---|---|---|", *self.files, ""]
        return "\n".join(lines) + "\n".join(report.markdown().replace("# ", "## ", 1) for report in self.parts.values())

    def save(self, path: Path, environment: list[str]) -> None:
        """Write the page."""
        write_text(path, self.markdown(environment))


def verify_official(model: str | Path) -> OfficialReport:
    """Compare every part of a model with PyTorch in float32; needs PyTorch and transformers, and memory for both.

    Args:
        model: bundle, or model directory of an imported LLaMA, OPT, image tokenizer or decoder.

    Raises:
        UserError: the model is of another kind, or was not imported.
    """
    parts = _parts(Path(model))
    reports, files = {}, []
    for part in parts:
        _, config = model_dir.read_config(part)
        provenance = config.get("provenance", {})
        sources = _sources(part, provenance, Path(model))
        reports[str(part)] = _compare(part, config["kind"], sources, provenance.get("variant"))
        files += _recorded_files(sources)
    return OfficialReport(reports, tuple(dict.fromkeys(files)))


def _parts(model: Path) -> list[Path]:
    _, config = model_dir.read_config(model)
    if config["kind"] == ModelKind.SEED_LLAMA or config["kind"] in LANGUAGE_MODELS:
        references = read_references(model)
        named = (references.image_tokenizer, references.language_model, references.decoder)
        return [path for path in named if path is not None]
    return [model]


def _sources(part: Path, provenance: dict[str, Any], model: Path) -> dict[str, Path]:
    """Return the files and directories that a part was imported from, as far as they are still there.

    A model that was moved with its downloads finds them by their last two names.
    """
    sources = {}
    for key in ("from", "adapter", "quantizer", "vit", "qformer", "codebook"):
        if not provenance.get(key):
            continue
        named = Path(provenance[key])
        roots = (model / DOWNLOADS, part.parent / DOWNLOADS)
        nearby = [root / Path(*named.parts[-count:]) for root in roots for count in (1, 2)]
        place = next((path for path in (named, *nearby) if path.exists()), None)
        if place is not None:
            sources[key] = place
    return sources


def _compare(part: Path, kind: str, sources: dict[str, Path], variant: str | None) -> ParityReport:
    if kind in _LAYOUTS:
        layout = _LAYOUTS[ModelKind(kind)]
        if "from" in sources:
            return parity.import_report(layout, sources["from"], part, adapter=sources.get("adapter"))
        with _temporary(part) as directory:
            export_language_model(layout, part, directory)
            return parity.export_report(layout, part, directory)
    if kind == ModelKind.IMAGE_TOKENIZER:
        return _compare_tokenizer(part, sources)
    if kind in DECODERS:
        if "from" in sources:
            return decoder_parity.import_report(sources["from"], part, variant=variant)
        with _temporary(part) as directory:
            export = export_unclip if kind == ModelKind.UNCLIP else export_stable_diffusion
            export(part, directory)
            return decoder_parity.export_report(part, directory)
    supported = "a LLaMA, an OPT, an image tokenizer, a decoder or a bundle of them"
    raise UserError(
        f"{part} holds a model of kind {kind!r}, which there is no PyTorch implementation of: give {supported}."
    )


def _compare_tokenizer(part: Path, sources: dict[str, Path]) -> ParityReport:
    title, facts = "Image tokenizer", {"model": str(part)}
    if "quantizer" in sources:
        tensors = open_tensors([sources["quantizer"]])
        if "vit" in sources:
            tensors = with_vit(tensors, open_tensors([sources["vit"]]))
        return tokenizer_parity.parity_report(title, part, [tensors], importing=True, facts=facts)
    official = open_official(part)
    if official.config is None or official.params is None:
        raise UserError(f"{part} holds a stage I model, which has no codes: give a complete image tokenizer.")
    params = load_on_device(cast_params(official.params, np.dtype(np.float32)))
    checks: tuple[Check, ...] = tokenizer_parity.forward_checks(official.config, params, official.tensors)
    note = "tensors not compared (the official files are not there any more)"
    return ParityReport(title, facts, (), checks, (note,))


@contextlib.contextmanager
def _temporary(part: Path) -> Iterator[Path]:
    """Yield a directory to export to, on the disk of the model."""
    with tempfile.TemporaryDirectory(prefix=".verify_", dir=part.parent) as temporary:
        yield Path(temporary) / "export"


def _recorded_files(sources: dict[str, Path]) -> list[str]:
    """Return table rows of the files that `seed-jax fetch` recorded."""
    rows = []
    for place in sources.values():
        directory = place if place.is_dir() else place.parent
        if not (directory / RECORD).is_file():
            continue
        for name, entry in read_record(directory)["files"].items():
            if name.endswith((".bin", ".pt", ".pth", ".safetensors", ".ckpt", ".model")):
                rows.append(f"| {directory.name}/{name} | `{entry['sha256']}` | {entry.get('source', 'unknown')} |")
    return rows
