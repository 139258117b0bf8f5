"""`seed-jax fetch`: download official weights, tokenizers and encoders, and check them."""

import argparse
import dataclasses
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from seed_jax.errors import UserError
from seed_jax.hub.manifest import Artefact, File, Manifest, load_manifest
from seed_jax.sizes import format_size

DESCRIPTION = """Download official weights, tokenizers and encoders into DIR/NAME. Every file is checked by size and
SHA-256; an interrupted download continues when the same command is run again. The hub's settings are honoured:
HF_TOKEN for gated repositories, HF_ENDPOINT for a mirror, HF_HUB_OFFLINE for the local cache only. With --import, DIR
becomes a model directory that chat, generate and eval read."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `fetch`."""
    summary = "download official weights, and check them"
    parser = subparsers.add_parser("fetch", help=summary, description=DESCRIPTION)
    parser.add_argument("names", nargs="*", metavar="NAME", help="artefact or bundle, such as seed-llama-8b")
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="directory to write to; each NAME gets its own subdirectory"
    )
    parser.add_argument("--optional", action="store_true", help="fetch the optional files too")
    parser.add_argument("--accept-licence", action="store_true", help="allow ungated copies of gated repositories")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="a manifest of your own, in the form of hub/manifest.toml"
    )
    importing = parser.add_argument_group("importing")
    importing.add_argument(
        "--import",
        dest="importing",
        action="store_true",
        help="make --to a model directory: fetch one NAME, import and verify every part, join them in a bundle",
    )
    importing.add_argument(
        "--verify",
        choices=("tensors", "full", "none"),
        help="with --import: compare every tensor with the files and, with full, the outputs of both models, which "
        "needs PyTorch and the memory of the model in float32 (default: tensors)",
    )
    listing = parser.add_argument_group("listing")
    listing.add_argument("--list", action="store_true", help="list what can be fetched, or all that is known of NAMEs")
    listing.add_argument("--json", action="store_true", help="list as JSON")
    network = parser.add_argument_group("network")
    network.add_argument(
        "--workers", type=_workers, default=4, metavar="N", help="files at a time (default: %(default)s)"
    )
    network.add_argument(
        "--timeout",
        type=_timeout,
        default=30.0,
        metavar="S",
        help="seconds without data before a retry (default: %(default)g)",
    )
    network.add_argument(
        "--retries",
        type=_retries,
        default=5,
        metavar="N",
        help="retries of a source that sends no new data (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the manifest, or fetch what is named."""
    manifest = load_manifest(args.manifest) if args.manifest else load_manifest()
    if args.json and not args.list:
        raise UserError("--json belongs to --list: add --list.")
    if args.verify and not args.importing:
        raise UserError("--verify belongs to --import: add --import.")
    if args.list:
        _list(manifest, args.names, args.json)
        return 0
    if not args.names:
        raise UserError("Nothing to fetch: name an artefact or bundle; `seed-jax fetch --list` names all.")
    if args.to is None:
        raise UserError("--to is missing: name the directory to write to.")
    if args.importing:
        from seed_jax.cli.fetch_import import fetch_and_import

        return fetch_and_import(manifest, args)
    _fetch(manifest, args)
    return 0


def _fetch(manifest: Manifest, args: argparse.Namespace) -> None:
    from seed_jax.hub.download import Options, fetch

    artefacts = manifest.resolve(args.names)
    for artefact in artefacts:
        logging.info("%s: %s (licence: %s)", artefact.name, artefact.title, artefact.licence)
    options = Options(args.optional, args.accept_licence, args.workers, args.timeout, args.retries)
    fetched = fetch(artefacts, args.to, options)
    fresh = sum(file.downloaded for file in fetched)
    print(f"{args.to}: {len(fetched)} files complete and checked, {fresh} of them downloaded now")
    for artefact in artefacts:
        out = args.to / "models" / artefact.name
        if arguments := artefact.import_arguments(args.to, out):
            print(f"import {artefact.name}: seed-jax {shlex.join(arguments)}")


def _list(manifest: Manifest, names: list[str], as_json: bool) -> None:
    selected, bundles = list(manifest.artefacts.values()), list(manifest.bundles.values())
    if names:
        selected = list({artefact.name: artefact for name in names for artefact in _lookup(manifest, name)}.values())
        bundles = [manifest.bundles[name] for name in names if name in manifest.bundles]
    if as_json:
        entries = {
            "artefacts": [dataclasses.asdict(artefact) for artefact in selected],
            "bundles": [dataclasses.asdict(bundle) for bundle in bundles],
        }
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    elif names:
        print("\n\n".join(_details(artefact) for artefact in selected))
    else:
        _print_table(manifest)


def _lookup(manifest: Manifest, name: str) -> list[Artefact]:
    """Return the artefacts of a name without what they need; one that cannot be fetched can still be listed."""
    if name in manifest.artefacts:
        return [manifest.artefacts[name]]
    return manifest.resolve([name])


def _print_table(manifest: Manifest) -> None:
    width = max(len(name) for name in (*manifest.artefacts, *manifest.bundles))
    print(f"{'NAME':{width}}  {'SIZE':>8}  {'GATED':7}  TITLE; LICENCE")
    for artefact in manifest.artefacts.values():
        size = "-" if artefact.unavailable else _total(artefact.selected_files())
        title = f"{artefact.title}; {artefact.licence}"
        print(f"{artefact.name:{width}}  {size:>8}  {artefact.gated:7}  {title}")
    print(f"\n{'BUNDLE':{width}}  {'SIZE':>8}  {'':7}  TITLE")
    for bundle in manifest.bundles.values():
        artefacts = manifest.resolve([bundle.name])
        size = _total(tuple(file for artefact in artefacts for file in artefact.selected_files()))
        print(f"{bundle.name:{width}}  {size:>8}  {'':7}  {bundle.title}: {', '.join(a.name for a in artefacts)}")


def _details(artefact: Artefact) -> str:
    lines = [f"{artefact.name}: {artefact.title}", f"  for: {artefact.purpose}"]
    lines.append(f"  licence: {artefact.licence} ({artefact.licence_confidence}); gated: {artefact.gated}")
    if artefact.unavailable:
        lines.append(f"  not available: {artefact.unavailable}")
    if artefact.needs:
        lines.append(f"  fetched with it: {', '.join(artefact.needs)}")
    if artefact.import_command:
        lines.append(f"  imported by: seed-jax {' '.join(artefact.import_command)}")
    if artefact.used_by:
        lines.append(f"  used by: {artefact.used_by}")
    for source in artefact.sources:
        at = f" at {source.revision}" if source.revision else ""
        copy = "; only with --accept-licence" if source.ungated_copy else ""
        where = f"{source.where}/{source.prefix}" if source.prefix else source.where
        lines.append(f"  from: {where}{at} ({source.confidence}{copy})")
    for file in artefact.files:
        size = "size unknown" if file.size is None else f"{'' if file.exact else 'about '}{format_size(file.size)}"
        sha256 = f"sha256 {file.sha256}{'' if len(file.sha256) == 64 else '...'}" if file.sha256 else "sha256 unknown"
        lines.append(
            f"  file: {file.path}, {size}, {sha256} ({file.confidence}{', optional' if file.optional else ''})"
        )
    return "\n".join(lines + [f"  note: {note}" for note in artefact.notes])


def _total(files: Sequence[File]) -> str:
    known = sum(file.size or 0 for file in files)
    return format_size(known) if known else "unknown"


def _workers(text: str) -> int:
    return int(_number(text, 1.0, whole=True))


def _retries(text: str) -> int:
    return int(_number(text, 0.0, whole=True))


def _timeout(text: str) -> float:
    return _number(text, 0.001, whole=False)


def _number(text: str, least: float, *, whole: bool) -> float:
    try:
        value = float(int(text)) if whole else float(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to 1000000")
    return value
