"""`seed-jax fetch NAME --import --to DIR`: from nothing to a model directory that every command reads.

    DIR/downloads/NAME/          what `seed-jax fetch` writes
    DIR/.importing/PART/         a part that is being imported and compared with its files
    DIR/language_model/, ...     a part that was imported and found equal to its files; renamed to here last
    DIR/config.json              the bundle, written when all parts are complete

An interrupted command continues: what is complete is neither fetched nor imported again.
"""

import argparse
import dataclasses
import logging
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

from seed_jax.errors import UserError
from seed_jax.hub.download import DOWNLOADS, Options, fetch
from seed_jax.hub.manifest import Artefact, Bundle, Manifest
from seed_jax.sizes import format_size

ROLES = {"model": "language_model", "tokenizer": "image_tokenizer", "decoder": "decoder"}
STAGING = ".importing"
LOCK = ".import.lock"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # read by PyTorch


@dataclasses.dataclass(frozen=True)
class Part:
    """One model directory to make.

    Attributes:
        role: its name below the directory, such as "language_model".
        artefact: what it is imported from.
        out: its final place, which exists once it is complete.
    """

    role: str
    artefact: Artefact
    out: Path

    @property
    def complete(self) -> bool:
        return (self.out / "config.json").is_file()


def fetch_and_import(manifest: Manifest, args: argparse.Namespace) -> int:
    """Fetch, import, verify and bundle one artefact or bundle; return the exit code.

    Raises:
        UserError: the name is not one that can be imported, a file cannot be fetched, an import differs from its
            files, or the disk has no room. What is complete stays, and the same command continues.
    """
    from seed_jax.files import locked  # deferred: --help needs no etils

    bundle, parts = _parts(manifest, args.names, args.to)
    if (args.to / "config.json").is_file():
        if bundle is None or not all(part.complete for part in parts):
            raise UserError(f"{args.to} holds another model: choose another --to.")
        print(f"{args.to}: complete")
        return _finish(args.to, bundle)
    try:
        args.to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {args.to} ({error.strerror}): choose another --to.") from None
    with locked(args.to / LOCK, str(args.to)):
        missing = [part for part in parts if not part.complete]
        for part in parts:
            if part not in missing:
                print(f"{part.out}: complete")
        _fetch(manifest, missing, args)
        for part in missing:
            _import(part, args.to, args.verify or "tensors")
        shutil.rmtree(args.to / STAGING, ignore_errors=True)
        if bundle is not None and "model" in bundle.parts:
            _write_bundle(args.to, bundle)
    if bundle is None or "model" not in bundle.parts:
        for part in parts:
            print(f"{part.out}: ready (from {part.artefact.name})")
        return 0
    return _finish(args.to, bundle)


def _parts(manifest: Manifest, names: list[str], to: Path) -> tuple[Bundle | None, list[Part]]:
    """Return the bundle of a name, if it is one, and the parts to make."""
    if len(names) != 1:
        raise UserError("--import makes one model in --to: name exactly one bundle or artefact.")
    manifest.resolve(names)  # an unknown name, or one that cannot be fetched
    bundle = manifest.bundles.get(names[0])
    artefacts = {ROLES[role]: name for role, name in bundle.parts.items()} if bundle else {names[0]: names[0]}
    parts = [Part(role, manifest.artefacts[name], to / role) for role, name in artefacts.items()]
    for part in parts:
        if part.artefact.import_command is None:
            raise UserError(
                f"{part.artefact.name} is not imported by itself (used by: {part.artefact.used_by}): omit --import."
            )
    return bundle, parts


def _fetch(manifest: Manifest, parts: list[Part], args: argparse.Namespace) -> None:
    if not parts:
        return
    artefacts = manifest.resolve([part.artefact.name for part in parts])
    _check_packages(parts, artefacts)
    downloads = args.to / DOWNLOADS
    imported = sum(_imported_size(part.artefact) for part in parts)
    files = [
        (downloads / artefact.name / file.path, file) for artefact in artefacts for file in artefact.selected_files()
    ]
    to_fetch = sum(file.size or 0 for path, file in files if not path.exists())
    free = shutil.disk_usage(args.to).free
    logging.info(
        "%s to fetch and about %s to import, of %s free on the disk of %s",
        *map(format_size, (to_fetch, imported, free)),
        args.to,
    )
    if to_fetch + imported > free:
        raise UserError(
            f"{args.to} has {format_size(free)} free, but downloads ({format_size(to_fetch)}) and imported models "
            f"({format_size(imported)}) need "
            f"{format_size(to_fetch + imported)}: free some space or choose another --to."
        )
    for artefact in artefacts:
        logging.info("%s: %s (licence: %s)", artefact.name, artefact.title, artefact.licence)
    options = Options(args.optional, args.accept_licence, args.workers, args.timeout, args.retries)
    fetched = fetch(artefacts, downloads, options)
    print(
        f"{downloads}: {len(fetched)} files complete and checked, {sum(f.downloaded for f in fetched)} downloaded now"
    )


def _check_packages(parts: list[Part], artefacts: list[Artefact]) -> None:
    """Refuse before gigabytes are fetched where a package is missing that the import needs."""
    pickles = any(file.path.endswith(_PICKLES) for artefact in artefacts for file in artefact.selected_files())
    draws = any((part.artefact.import_command or ("", ""))[1] in ("unclip", "sd") for part in parts)
    needed = {"torch": pickles, "diffusers": draws}
    extras = {"torch": "torch", "diffusers": "decoder"}
    if missing := [extras[name] for name, wanted in needed.items() if wanted and find_spec(name) is None]:
        raise UserError(
            f"The import needs the extra {' and '.join(missing)}: pip install 'seed-jax[{','.join(missing)}]'."
        )


def _imported_size(artefact: Artefact) -> int:
    return artefact.imported_size or sum(file.size or 0 for file in artefact.selected_files())


def _import(part: Part, to: Path, verify: str) -> None:
    """Import one part in a staging directory, compare it with its files, and rename it to its final place."""
    from seed_jax.cli import import_

    staging = to / STAGING / part.role
    shutil.rmtree(staging, ignore_errors=True)  # what an interrupted import left
    parser = argparse.ArgumentParser()
    import_.add_parser(parser.add_subparsers())
    arguments = part.artefact.import_arguments(to / DOWNLOADS, staging)
    assert arguments is not None
    logging.info("import %s: seed-jax %s", part.artefact.name, shlex.join(arguments))
    options = parser.parse_args(arguments)
    if verify != "none" and hasattr(options, "verify"):
        options.verify = verify
    code = options.run(options)
    if code:
        raise UserError(
            f"The import of {part.artefact.name} differs from its files: see {staging / 'parity.md'}; run the same "
            "command again, which imports it again, or report it with that file."
        )
    if part.out.exists():
        raise UserError(f"{part.out} exists and is not a model directory: move it away and run the same command again.")
    staging.rename(part.out)


def _write_bundle(to: Path, bundle: Bundle) -> None:
    from seed_jax.inference.language_model import write_bundle

    places = {role: to / ROLES[role] for role in bundle.parts}
    write_bundle(
        to,
        language_model=places["model"],
        image_tokenizer=places.get("tokenizer"),
        decoder=places.get("decoder"),
        prompt_style=bundle.prompt_style,
    )


def _finish(to: Path, bundle: Bundle) -> int:
    """Print the memory plan for the devices at hand, and what comes next."""
    import jax

    from seed_jax.inference.memory_plan import device_memory
    from seed_jax.inference.quantization_choice import choices, table
    from seed_jax.inference.seed_llama import LoadConfig

    device, limit = jax.local_devices()[0], device_memory()
    planned = choices(LoadConfig(to))
    print(f"memory to see, write and draw on {device.device_kind} ({device.platform}):")
    print("\n".join(f"  {line}" for line in table(planned, limit)))
    downloads = to / DOWNLOADS
    if downloads.is_dir():
        size = sum(path.stat().st_size for path in downloads.rglob("*") if path.is_file())
        print(f"{downloads} ({format_size(size)}) is not needed any more and can be deleted")
    chosen = next((choice for choice in planned if choice.fits(limit)), None)
    if chosen is None:
        print(f"{bundle.name} is ready, but does not fit on this device: copy {to} to a larger one")
        return 0
    command = " ".join(filter(None, ("seed-jax chat --model", shlex.quote(str(to)), chosen.options)))
    print(f"ready: {command} --out images")
    return 0
