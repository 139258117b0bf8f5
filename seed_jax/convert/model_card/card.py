"""Write README.md: a model card with the metadata that the Hugging Face Hub reads."""

import importlib.resources
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import seed_jax
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import DECODERS, ModelKind
from seed_jax.convert.model_card.facts import ModelFacts, artefact, read_facts, read_results
from seed_jax.errors import UserError
from seed_jax.files import write_text
from seed_jax.models.tokenizer.config import SeedTokenizerConfig

README = "README.md"
SCRIPT, TOKENIZER_MODULE = "load_in_pytorch.py", "seed_tokenizer_pytorch.py"
MARK = "<!-- written by seed_jax -->"  # a README without it is the user's own and is kept
# Identifiers of the Hub; anything else is "other".
_HUB_LICENCES = ("apache-2.0", "mit", "llama2", "openrail++", "creativeml-openrail-m")
# Kinds that PyTorch's formats exist for -> subcommand of `seed-jax export`.
_EXPORTS = {
    ModelKind.LLAMA: "llama",
    ModelKind.OPT: "opt",
    ModelKind.IMAGE_TOKENIZER: "tokenizer",
    ModelKind.UNCLIP: "unclip",
    ModelKind.STABLE_DIFFUSION: "sd",
}
BIBTEX = """@article{ge2023planting,
  title={Planting a SEED of Vision in Large Language Model},
  author={Ge, Yuying and Ge, Yixiao and Zeng, Ziyun and Wang, Xintao and Shan, Ying},
  journal={arXiv preprint arXiv:2307.08041},
  year={2023}
}

@article{ge2023making,
  title={Making LLaMA SEE and Draw with SEED Tokenizer},
  author={Ge, Yuying and Zhao, Sijie and Zeng, Ziyun and Ge, Yixiao and Li, Chen and Wang, Xintao and Shan, Ying},
  journal={arXiv preprint arXiv:2310.01218},
  year={2023}
}"""


def write_export_card(
    folder: Path,
    model: str | Path,
    *,
    title: str,
    library: str,
    pipeline: str,
    load: str,
    import_arguments: str | None,
    script: bool,
) -> None:
    """Write the README.md of an exported folder and, with `script`, `load_in_pytorch.py`.

    Args:
        folder: being written.
        model: the model directory or workdir that is exported.
        title: heading of the card.
        library: that loads the folder, for the metadata.
        pipeline: task tag of the Hub, for the metadata.
        load: Python code that loads the folder.
        import_arguments: of `seed-jax import`, which convert the folder back; None where that is not possible.
        script: whether the folder is a part of a SEED-LLaMA that the script runs.
    """
    sections = {"Load it in PyTorch": _code(load, "python")}
    if script:
        copy_script(folder, SCRIPT)
        sections["Load it in PyTorch"] += (
            f"\n\n`{SCRIPT}` runs the whole chain (image, codes, answer, image) on three exported folders:\n\n"
            + _code(f'python {SCRIPT} LLAMA_DIR TOKENIZER_DIR UNCLIP_DIR cat.jpg "Please draw this again."', "bash")
        )
    if import_arguments is not None:
        sections["Convert it back to JAX"] = _code(f"seed-jax import {import_arguments} --out DIR", "bash")
    write_text(folder / README, _card(title, library, pipeline, [read_facts(model)], sections))


def write_bundle_card(directory: Path, parts: Sequence[Path]) -> None:
    """Write the README.md of a bundle, unless the directory has one of the user's own.

    Args:
        directory: of the bundle.
        parts: model directories and workdirs that it names.
    """
    path = directory / README
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    name = directory.resolve().name
    facts = [read_facts(part) for part in parts]
    sections = {
        "Use it here": _code(
            f"seed-jax chat --model {name} --out images\n"
            f'seed-jax generate --model {name} --image cat.jpg --prompt "What is this?"',
            "bash",
        )
        + "\n\n"
        + _code(
            "from seed_jax.inference.seed_llama import SeedLlama\n\n"
            f'model = SeedLlama.load("{name}")\n'
            'answer = model.ask("What is this?", ["cat.jpg"])',
            "python",
        ),
        "Export it to PyTorch": _export_section(directory, facts),
    }
    write_text(path, _card(f"SEED-LLaMA: {name}", "seed-jax", "any-to-any", facts, sections, read_results(directory)))


def copy_script(folder: Path, name: str) -> None:
    """Copy a packaged PyTorch script into a folder."""
    source = importlib.resources.files("seed_jax.convert.model_card").joinpath(f"{name}.txt")
    write_text(folder / name, source.read_text(encoding="utf-8"))


def _export_section(directory: Path, facts: Sequence[ModelFacts]) -> str:
    """Return the export commands of a bundle's parts, and which parts PyTorch's formats cannot hold."""
    root, name = directory.resolve().parent, directory.resolve().name
    commands, notes = {}, []
    for fact in facts:
        kind = _EXPORTS.get(ModelKind(fact.kind))
        if reason := _not_exportable(fact):
            notes.append(f"`{fact.directory.name}` cannot be exported: {reason}.")
        elif kind is not None:
            model = os.path.relpath(fact.directory.resolve(), root)
            # A trained unCLIP decoder has no image encoder, which PyTorch's pipeline needs.
            encoder = " --image-encoder DIFFUSERS_DIR" if kind == "unclip" and fact.training else ""
            commands[kind] = f"seed-jax export {kind} --model {shlex.quote(model)}{encoder} --out {name}_{kind}"
    if commands.keys() == {"llama", "tokenizer", "unclip"}:
        notes.append(f"Each export has a `{SCRIPT}`, which runs the whole chain.")
    return "\n\n".join([*([_code("\n".join(commands.values()), "bash")] if commands else []), *notes])


def _not_exportable(fact: ModelFacts) -> str | None:
    """Return why PyTorch's formats cannot hold a model, or None."""
    if fact.kind == ModelKind.IMAGE_TOKENIZER:
        try:
            config = SeedTokenizerConfig.from_dict(fact.sizes, str(fact.directory))
        except UserError:
            return "its sizes are damaged"
        return None if config.vit.has_eva_layout else "the official files have no names for its ViT, which is CLIP's"
    if fact.kind in DECODERS and not (model_dir.read_config(fact.directory)[0] / "vocab.json").is_file():
        return "it has no text tokenizer, which PyTorch's pipeline needs"
    return None


def _card(
    title: str, library: str, pipeline: str, facts: Sequence[ModelFacts], sections: Mapping[str, str],
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:  # fmt: skip
    names = list(dict.fromkeys(name for fact in facts for name in fact.artefacts))
    body = [_metadata(library, pipeline, names), MARK, f"# {title}", _summary(facts)]
    body += [f"## {heading}\n\n{text}" for heading, text in sections.items()]
    body.append(f"## Base models and licences\n\n{_licences(names)}")
    for fact in facts:
        body += _training(fact)
    results = {f"{fact.directory.name}/{name}": values for fact in facts for name, values in fact.results.items()}
    results |= extra or {}
    body.append(f"## Evaluation\n\n{_evaluation(results)}")
    body.append(f"## Citation\n\n{_code(BIBTEX, 'bibtex')}")
    return "\n\n".join(body) + "\n"


def _metadata(library: str, pipeline: str, names: Sequence[str]) -> str:
    """Return the YAML header; only names and identifiers are put into it, so that it needs no quoting."""
    known = [entry for name in names if (entry := artefact(name)) is not None]
    licences = {entry.licence if entry.licence in _HUB_LICENCES else "other" for entry in known}
    bases = [source.where for entry in known for source in entry.sources[:1] if source.kind == "hub"]
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {pipeline}", "tags:", "- seed", "- seed-llama", "- jax"]
    if licences:
        lines.append(f"license: {licences.pop() if len(licences) == 1 else 'other'}")
    if bases:
        lines += ["base_model:", *(f"- {base}" for base in dict.fromkeys(bases))]
    return "\n".join([*lines, "---"])


def _summary(facts: Sequence[ModelFacts]) -> str:
    lines = [f"Written by seed_jax {seed_jax.__version__}.", "", "| part | directory | made by |", "|---|---|---|"]
    for fact in facts:
        made = f"training stage `{fact.training.get('stage')}`" if fact.training else "import of published weights"
        if not fact.training and not fact.provenance:
            made = "unknown"
        if fact.provenance.get("made_by") or fact.provenance.get("trained_by"):
            made = str(fact.provenance.get("made_by") or fact.provenance.get("trained_by"))
        lines.append(f"| {fact.description} | `{fact.directory.name}` | {_cell(made)} |")
    return "\n".join(lines)


def _licences(names: Sequence[str]) -> str:
    if not names:
        return (
            "No base model is recorded: either everything was trained from scratch, or the files were not downloaded "
            "by `seed-jax fetch`. In the second case their licences hold for this model too."
        )
    lines = ["The licences of the base models hold for everything that is derived from them.", ""]
    lines += ["| base model | from | licence | stated |", "|---|---|---|---|"]
    for name in names:
        entry = artefact(name)
        if entry is None:
            lines.append(f"| {_cell(name)} | unknown | unknown | not in the manifest |")
            continue
        where = entry.sources[0].where if entry.sources else "not published"
        lines.append(f"| {_cell(entry.title)} | {where} | {_cell(entry.licence)} | {entry.licence_confidence} |")
    return "\n".join(lines)


def _training(fact: ModelFacts) -> list[str]:
    if fact.training is None:
        return []
    config = json.dumps(fact.training, indent=1, sort_keys=True, ensure_ascii=False)
    lines = [f"## Training of `{fact.directory.name}`"]
    if fact.data:
        rows = ["| shards | " + " | ".join(_DATA_COLUMNS) + " |", "|---" * (len(_DATA_COLUMNS) + 1) + "|"]
        for path, values in fact.data.items():
            cells = " | ".join(_cell(str(values.get(column, "unknown"))) for column in _DATA_COLUMNS)
            rows.append(f"| `{Path(path).name}` | {cells} |")
        lines.append("\n".join(rows))
    lines.append(f"<details><summary>configuration</summary>\n\n{_code(config, 'json')}\n\n</details>")
    return ["\n\n".join(lines)]


_DATA_COLUMNS = ("task", "weight", "source", "records", "codes", "texts", "image tokenizer")


def _evaluation(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"| {_cell(file)} | {_cell(name)} | {value:.6g} |"
        for file, values in results.items()
        for name, value in _numbers(values)
    ]
    if not rows:
        return "No results were found beside the model."
    return "\n".join(["| file | metric | value |", "|---|---|---|", *rows])


def _numbers(values: Any, prefix: str = "") -> list[tuple[str, float]]:
    """Return the scores of a results file, by path; lists (samples, intervals) are left out."""
    if isinstance(values, Mapping):
        return [pair for key, value in values.items() for pair in _numbers(value, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, float(values))] if isinstance(values, int | float) and not isinstance(values, bool) else []


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
