"""`seed-jax tokenize`: pictures to JSON lines of codes."""

import argparse
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from jax.sharding import AxisType, Mesh
from tqdm import tqdm

from seed_jax import images
from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.inference.image_tokenizer import Coded, ImageTokenizer, Preprocessing
from seed_jax.precision import Precision


def add_parser(subparsers) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser("tokenize", help="pictures to codes", description=run.__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, or folders that are searched for them")
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory of an image tokenizer")
    parser.add_argument("--out", required=True, metavar="FILE", help='JSON lines {"path", "codes"}')
    parser.add_argument("--batch-size", type=int, default=16, help="pictures a step (default %(default)s)")
    parser.add_argument(
        "--interpolation",
        default="bilinear",
        choices=sorted(images.INTERPOLATIONS),
        help="of the resize; bilinear made the original's corpora (default)",
    )
    parser.add_argument("--keep-ratio", action="store_true", help="crop the centre instead of squashing")
    parser.add_argument(
        "--compute-dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="bfloat16 is quicker on accelerators and changes codes that are nearly ties (default %(default)s)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="count unreadable pictures and go on")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures (default %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Turn pictures into codes, one JSON line a picture; run again after an interruption to go on."""
    paths = list(find_pictures(args.paths))
    tokenizer = ImageTokenizer.load(
        args.model,
        precision=Precision(compute=args.compute_dtype),
        preprocessing=Preprocessing(args.interpolation, args.keep_ratio),
        batch_size=args.batch_size,
        mesh=_mesh(),
    )
    out = Path(args.out)
    done = resume(out, tokenizer.fingerprint)
    todo = [path for path in paths if path not in done]
    written, bad = 0, 0
    with out.open("a", encoding="utf-8") as file, tqdm(total=len(todo), unit="picture", disable=None) as progress:
        for coded in tokenizer.encode_stream(((path, path) for path in todo), workers=args.workers):
            progress.update()
            bad += not _write(file, coded, skip_bad=args.skip_bad)
            written += coded.error is None
    logging.info(
        "%d pictures tokenised into %s, %d were there already, %d unreadable.",
        written,
        out,
        len(paths) - len(todo),
        bad,
    )
    return 0


def find_pictures(paths: Iterable[str]) -> Iterator[str]:
    """Yield each picture once: files as they are, folders searched (in sorted order) for names that are pictures'."""
    seen = set()
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise UserError(f"{given} does not exist: give pictures or folders of pictures.")
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in images.EXTENSIONS and p.is_file())
            if not found:
                raise UserError(f"{given} holds no pictures ({', '.join(images.EXTENSIONS)}): give another folder.")
        for picture in map(str, found):
            if picture not in seen:
                seen.add(picture)
                yield picture


def resume(out: Path, fingerprint: str) -> set[str]:
    """Return the paths that `out` already holds, after dropping a last line that was cut off.

    Beside `out` stands which tokenizer makes it; codes of two tokenizers never share a file.
    """
    sidecar = out.with_name(f"{out.name}.tokenizer.json")
    if out.exists() and out.stat().st_size:
        _check_sidecar(out, sidecar, fingerprint)
        return _finished(out)
    if not out.parent.is_dir():
        raise UserError(f"The folder of --out {out} does not exist: create {out.parent}.")
    write_json(sidecar, {"fingerprint": fingerprint})
    return set()


def _check_sidecar(out: Path, sidecar: Path, fingerprint: str) -> None:
    try:
        found = json.loads(sidecar.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{out} holds something and {sidecar.name} does not say which tokenizer made it: choose another --out."
        ) from None
    if found != fingerprint:
        raise UserError(
            f"{out} was made by another tokenizer or other preprocessing ({found}, now {fingerprint}): "
            "choose another --out or remove both files."
        )


def _finished(out: Path) -> set[str]:
    data = out.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        logging.info("Dropped the last line of %s, which an interruption had cut off.", out)
        os.truncate(out, whole)
    finished = set()
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            finished.add(json.loads(line)["path"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{out} line {number} is not a JSON object with "path" and "codes": repair or remove the file.'
            ) from None
    return finished


def _write(file, coded: Coded, *, skip_bad: bool) -> bool:
    """Write one line, or report a picture without codes; return whether there was a line to write."""
    if coded.error is None:
        file.write(json.dumps({"path": coded.key, "codes": coded.codes.tolist()}) + "\n")
        file.flush()
        return True
    if not skip_bad:
        raise UserError(f"{coded.error} (--skip-bad goes on without it)")
    logging.warning("%s", coded.error)
    return False


def _mesh() -> Mesh | None:
    """Spread batches over this machine's devices."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices) if len(devices) > 1 else None
