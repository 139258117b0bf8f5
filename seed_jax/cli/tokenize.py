"""`seed-jax tokenize`: encode images as JSON lines of codes."""

import argparse
import json
import logging
import os
from collections.abc import Iterable, Iterator
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from seed_jax.cli.tokenizer_options import add_encoding_options, load_tokenizer
from seed_jax.errors import UserError
from seed_jax.files import MAX_LIST_BYTES, locked, parse_json, read_bytes, read_text, walk_files, write_json

if TYPE_CHECKING:  # imports JAX, which --help must not wait for
    from seed_jax.inference.image_tokenizer import EncodedImage


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `tokenize`."""
    parser = subparsers.add_parser(
        "tokenize",
        help="encode images as codes",
        description="Encode images as codes, one JSON line per image. After an interruption, run the same command "
        "again to resume.",
    )
    model = parser.add_argument_group("image tokenizer")
    model.add_argument("--model", required=True, metavar="DIR", help="model directory of an image tokenizer")
    add_encoding_options(model, batch_size=16)
    inputs = parser.add_argument_group("images")
    inputs.add_argument("paths", nargs="+", metavar="PATH", help="images, or folders to search for images")
    inputs.add_argument("--skip-bad", action="store_true", help="skip and count unreadable images")
    inputs.add_argument(
        "--workers", type=int, default=4, metavar="N", help="threads that decode images (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, type=Path, metavar="FILE", help='file of JSON lines {"path", "codes"}')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Encode the images that --out does not hold yet; return the exit code."""
    from tqdm import tqdm

    paths = list(find_images(args.paths))
    out = Path(args.out)
    if not out.parent.is_dir():
        raise UserError(f"The folder of --out {out} does not exist: create {out.parent}.")
    tokenizer = load_tokenizer(args)
    written, unreadable = 0, 0
    with locked(out.with_name(f".{out.name}.lock"), str(out)):
        finished = resume(out, tokenizer.fingerprint, tokenizer.precision.compute)
        remaining = [path for path in paths if path not in finished]
        progress = tqdm(total=len(remaining), unit="image", disable=None)
        with out.open("a", encoding="utf-8") as file, progress:
            for encoded in tokenizer.encode_stream(((path, path) for path in remaining), workers=args.workers):
                progress.update()
                if _write(file, encoded, skip_bad=args.skip_bad):
                    written += 1
                else:
                    unreadable += 1
    logging.info(
        "Encoded %d images into %s; %d were there already, %d are unreadable.",
        written,
        out,
        len(paths) - len(remaining),
        unreadable,
    )
    return 0


def find_images(paths: Iterable[str]) -> Iterator[str]:
    """Yield the path of each image once: files as given, folders searched in sorted order for image extensions.

    Hidden files and folders are skipped, links are followed.

    Raises:
        UserError: a path does not exist, or a folder holds no images.
    """
    from seed_jax import images  # deferred: --help needs neither NumPy nor Pillow

    seen: set[str] = set()
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise UserError(f"{given} does not exist: give images or folders of images.")
        files = [path]
        if path.is_dir():
            files = sorted(p for p in walk_files(path) if p.suffix.lower() in images.EXTENSIONS and p.is_file())
            if not files:
                raise UserError(f"{given} holds no images ({', '.join(images.EXTENSIONS)}): give another folder.")
        for name in map(str, files):
            if name not in seen:
                seen.add(name)
                yield name


def resume(out: Path, fingerprint: str, precision: str) -> set[str]:
    """Prepare `out` for appending.

    A last line that an interruption truncated is removed. A sidecar file records the tokenizer's fingerprint and
    precision, so that the codes of two tokenizers or precisions never share a file.

    Args:
        out: the file of JSON lines.
        fingerprint: of the tokenizer and its preprocessing.
        precision: of the computation.

    Returns:
        The paths that `out` already holds.

    Raises:
        UserError: `out` was written by another tokenizer or in another precision, or is not a file of codes.
    """
    sidecar = out.with_name(f"{out.name}.tokenizer.json")
    if out.exists() and out.stat().st_size:
        _check_sidecar(out, sidecar, fingerprint, precision)
        return _finished_paths(out)
    write_json(sidecar, {"fingerprint": fingerprint, "precision": precision})
    return set()


def _check_sidecar(out: Path, sidecar: Path, fingerprint: str, precision: str) -> None:
    try:
        content = parse_json(read_text(sidecar))
        stored = content["fingerprint"]
        stored_precision = content.get("precision", "float32")  # the default of earlier versions, which do not name it
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{out} is not empty and {sidecar.name} does not name the tokenizer that wrote it: choose another --out."
        ) from None
    if stored != fingerprint:
        raise UserError(
            f"{out} was written by another tokenizer or with other preprocessing ({stored}, now {fingerprint}): "
            "choose another --out or remove both files."
        )
    if stored_precision != precision:
        raise UserError(
            f"{out} was written with --precision {stored_precision}, now it is {precision}: codes near ties would "
            f"differ; give --precision {stored_precision}, or choose another --out."
        )


def _finished_paths(out: Path) -> set[str]:
    data = read_bytes(out, MAX_LIST_BYTES)
    complete = data.rfind(b"\n") + 1
    if complete < len(data):
        logging.info("Removed the last line of %s, which an interruption had truncated.", out)
        os.truncate(out, complete)
    finished = set()
    for number, line in enumerate(data[:complete].splitlines(), 1):
        try:
            finished.add(parse_json(line)["path"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{out} line {number} is not a JSON object with "path" and "codes": repair or remove the file.'
            ) from None
    return finished


def _write(file: TextIOBase, encoded: "EncodedImage", *, skip_bad: bool) -> bool:
    """Write one line, or report an unreadable image; return whether a line was written."""
    if encoded.codes is not None:
        file.write(json.dumps({"path": encoded.key, "codes": encoded.codes.tolist()}) + "\n")
        file.flush()
        return True
    if not skip_bad:
        raise UserError(f"{encoded.error} (--skip-bad skips it)")
    logging.warning("%s", encoded.error)
    return False
