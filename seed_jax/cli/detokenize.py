"""`seed-jax detokenize`: codes to pictures."""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.errors import UserError
from seed_jax.files import write_json
from seed_jax.inference.contact_sheet import contact_sheet
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.models.diffusion import SAMPLERS

SETTINGS, SHEET = "drawing.json", "contact_sheet.png"
SHEET_ROWS = 40


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("detokenize", help=__doc__, description=run.__doc__)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="image tokenizer")
    parser.add_argument("--unclip", required=True, type=Path, metavar="DIR", help="decoder")
    parser.add_argument(
        "--codes", required=True, type=Path, metavar="FILE", help="JSON lines as `tokenize` writes them"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--candidates", type=int, default=1, help="pictures for each line (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first candidate; the others count on from it")
    options = DrawOptions()
    parser.add_argument("--sampler", choices=sorted(SAMPLERS), help="default: the decoder's own, usually pndm")
    parser.add_argument("--steps", type=int, default=options.steps, help="12 to 15 do for dpmpp (default %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=options.guidance_scale, help="default %(default)s")
    parser.add_argument("--noise-level", type=int, default=options.noise_level, help="0 to 999 (default %(default)s)")
    parser.add_argument("--prompt", default="", help="text that accompanies the codes")
    parser.add_argument("--negative-prompt", default="", help="text to be guided away from")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures at a time on each device")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the UNet")
    parser.add_argument("--vae-dtype", choices=("float32", "bfloat16"), default="float32", help="of the autoencoder")
    parser.add_argument("--tile", type=int, help="decode in tiles of this many latents, to save memory")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw every line's codes as PNG files and a contact sheet; a second run draws what is missing."""
    if args.candidates < 1:
        raise UserError(f"--candidates {args.candidates}: expected at least 1.")
    lines = read_codes(args.codes)
    settings = _settings(args)
    work = [(line, args.seed + i, args.out / line.picture(i)) for line in lines for i in range(args.candidates)]
    missing = [(line, seed, path) for line, seed, path in work if not path.exists()]
    if missing:
        _draw(args, settings, missing)
    shown = lines[:SHEET_ROWS]
    rows = [[_original(line), *(args.out / line.picture(i) for i in range(args.candidates))] for line in shown]
    if not any(row[0] for row in rows):
        rows = [row[1:] for row in rows]
    _save(contact_sheet(rows), args.out / SHEET)
    left_out = f" (the first {SHEET_ROWS} of {len(lines)})" if len(lines) > SHEET_ROWS else ""
    print(f"{args.out}: {len(missing)} pictures drawn, {len(work) - len(missing)} were there; {SHEET}{left_out}")
    return 0


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the codes file."""

    number: int
    path: str | None
    codes: tuple[int, ...]

    def picture(self, candidate: int) -> str:
        """Name the picture's file: by number, since paths may share their last part."""
        stem = Path(self.path).stem if self.path else "picture"
        return f"{self.number:06d}_{stem}_{candidate}.png"


def read_codes(path: Path) -> list[Line]:
    """Read {"path", "codes"} lines; how many codes and how large they may be is checked by the tokenizer."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the JSON lines that `seed-jax tokenize` wrote.")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            lines.append(_line(f"{path}, line {number}", number, text))
    if not lines:
        raise UserError(f"{path} holds no codes.")
    return lines


def _line(where: str, number: int, text: str) -> Line:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}).") from error
    codes = record.get("codes") if isinstance(record, dict) else None
    if not isinstance(codes, list) or not all(type(code) is int for code in codes):
        raise UserError(f'{where}: expected {{"path": ..., "codes": [whole numbers]}}.')
    source = record.get("path")
    return Line(number, source if isinstance(source, str) else None, tuple(codes))


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the pictures depend on; a folder with pictures of other settings is refused."""
    named = ("sampler", "steps", "guidance_scale", "noise_level", "prompt", "negative_prompt", "seed", "dtype",
             "vae_dtype", "tile")  # fmt: skip
    settings = {"model": str(args.model), "unclip": str(args.unclip)}
    settings["codes"] = hashlib.sha256(args.codes.read_bytes()).hexdigest()
    settings |= {name: getattr(args, name) for name in named}
    path = args.out / SETTINGS
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise UserError(
            f"{args.out} holds pictures drawn with other settings ({', '.join(changed)}): choose another --out."
        )
    return settings


def _draw(args: argparse.Namespace, settings: dict[str, Any], missing: list[tuple[Line, int, Path]]) -> None:
    from seed_jax.inference.drawing.drawer import (
        Drawer,
    )  # late: what is wrong with the arguments is said before JAX starts
    from seed_jax.inference.image_tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.load(args.model)
    lines = list({line.number: line for line, _, _ in missing}.values())
    for line in lines:
        _check_codes(f"{args.codes}, line {line.number}", line, tokenizer.config)
    found = tokenizer.embed_codes(np.asarray([line.codes for line in lines], np.int32))
    embeddings = {line.number: row for line, row in zip(lines, found, strict=True)}
    del tokenizer  # its weights need not stay beside the decoder's
    drawer = Drawer.load(args.unclip, dtype=args.dtype, vae_dtype=args.vae_dtype)
    stream = drawer.stream(
        np.stack([embeddings[line.number] for line, _, _ in missing]),
        [seed for _, seed, _ in missing],
        DrawOptions(args.sampler, args.steps, args.guidance_scale, args.noise_level, args.tile),
        batch_size=args.batch_size,
        progress=True,
        prompts=args.prompt,
        negative_prompts=args.negative_prompt,
    )
    paths = [path for _, _, path in missing]
    for pictures in stream:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / SETTINGS, settings)
        for picture in pictures:
            _save(Image.fromarray(picture), paths.pop(0))


def _check_codes(where: str, line: Line, tokenizer: Any) -> None:
    expected, limit = tokenizer.codes_per_image, tokenizer.num_codes
    if len(line.codes) != expected:
        raise UserError(f"{where} has {len(line.codes)} codes, but a picture of this tokenizer has {expected}.")
    if not all(0 <= code < limit for code in line.codes):
        raise UserError(f"{where} has a code outside of 0 to {limit - 1}: it is of another tokenizer, or damaged.")


def _original(line: Line) -> Image.Image | None:
    """Return the picture the codes came from, where it is still there."""
    if line.path is None or not Path(line.path).is_file():
        return None
    try:
        return images.load(line.path)
    except UserError:
        return None


def _save(picture: Image.Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    picture.save(temporary, format="PNG")
    temporary.replace(path)
