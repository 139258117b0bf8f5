"""`seed-jax detokenize`: draw images from codes."""

import argparse
import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed_jax.errors import UserError
from seed_jax.files import MAX_LIST_BYTES, atomic_path, parse_json, read_bytes, read_json, write_json

if TYPE_CHECKING:  # imports JAX, which --help must not wait for
    from PIL import Image

    from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig

SETTINGS, CONTACT_SHEET = "drawing.json", "contact_sheet.png"
CONTACT_SHEET_ROWS = 40
# Names of the samplers in `seed_jax.models.diffusion`, which imports JAX.
SAMPLERS = ("ddim", "dpmpp", "pndm")
_DRAWING_OPTIONS = (
    "sampler", "steps", "guidance_scale", "noise_level", "prompt", "negative_prompt", "seed", "dtype", "vae_dtype",
    "tile",
)  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command `detokenize`."""
    parser = subparsers.add_parser(
        "detokenize",
        help="draw images from codes",
        description="Draw the codes of every line as PNG files and a contact sheet. A second run draws missing images.",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, type=Path, metavar="DIR", help="image tokenizer")
    model.add_argument(
        "--decoder", "--unclip", dest="decoder", required=True, type=Path, metavar="DIR", help="image decoder"
    )
    model.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the UNet (default: %(default)s)"
    )
    model.add_argument(
        "--vae-dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the autoencoder (default: %(default)s)",
    )  # fmt: skip
    model.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="images at a time per device (default: %(default)s)"
    )
    inputs = parser.add_argument_group("images")
    inputs.add_argument(
        "--codes", required=True, type=Path, metavar="FILE", help="JSON lines as `tokenize` writes them"
    )
    inputs.add_argument("--candidates", type=int, default=1, metavar="N", help="per line (default: %(default)s)")
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--seed", type=int, default=0, metavar="N", help="of the first candidate; others count up")
    decoding.add_argument("--sampler", choices=SAMPLERS, help="default: the decoder's own, usually pndm")
    decoding.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="12 to 15 are enough for dpmpp (default: the decoder's, 20 or SEED-1's 50)",
    )
    decoding.add_argument(
        "--guidance-scale", type=float, metavar="X",
        help="classifier-free guidance; 1 disables it (default: the decoder's, 10 or SEED-1's 7.5)",
    )  # fmt: skip
    decoding.add_argument(
        "--noise-level", type=int, default=0, metavar="N",
        help="noise on the image embedding, 0 to 999 (default: %(default)s)",
    )  # fmt: skip
    decoding.add_argument("--prompt", default="", metavar="TEXT", help="text that accompanies the codes")
    decoding.add_argument("--negative-prompt", default="", metavar="TEXT", help="text to guide away from")
    decoding.add_argument("--tile", type=int, metavar="N", help="decode in tiles of N latents to save memory")
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the images")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the images that --out lacks and the contact sheet; return the exit code."""
    from seed_jax.inference.contact_sheet import contact_sheet

    if args.candidates < 1:
        raise UserError(f"--candidates {args.candidates}: expected at least 1.")
    lines = read_codes(args.codes)
    settings = _check_settings(args)
    work = [(line, args.seed + i, args.out / line.file_name(i)) for line in lines for i in range(args.candidates)]
    missing = [(line, seed, path) for line, seed, path in work if not path.exists()]
    if missing:
        _draw(args, settings, missing)
    shown = lines[:CONTACT_SHEET_ROWS]
    rows = [[_original(line), *(args.out / line.file_name(i) for i in range(args.candidates))] for line in shown]
    if not any(row[0] for row in rows):
        rows = [row[1:] for row in rows]
    _save(contact_sheet(rows), args.out / CONTACT_SHEET)
    omitted = f" (the first {CONTACT_SHEET_ROWS} of {len(lines)})" if len(lines) > CONTACT_SHEET_ROWS else ""
    existing = len(work) - len(missing)
    print(f"{args.out}: {len(missing)} images drawn, {existing} existed already; {CONTACT_SHEET}{omitted}")
    return 0


@dataclasses.dataclass(frozen=True)
class CodesLine:
    """A line of the codes file.

    Args:
        number: of the line, from 1.
        path: of the image that the codes came from, if the line names one.
        codes: one integer per query of the tokenizer.
    """

    number: int
    path: str | None
    codes: tuple[int, ...]

    def file_name(self, candidate: int) -> str:
        """Name a candidate's PNG file: the number distinguishes paths that share their last part."""
        stem = Path(self.path).stem if self.path else "image"
        return f"{self.number:06d}_{stem}_{candidate}.png"


def read_codes(path: Path) -> list[CodesLine]:
    """Read {"path", "codes"} lines; the tokenizer checks the number and range of the codes later.

    Raises:
        UserError: the file is missing or empty, or a line is malformed.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the JSON lines that `seed-jax tokenize` wrote.")
    lines = []
    # Split before decoding: bytes end at CR and LF only, a text also at U+2028 and others that JSON allows.
    for number, text in enumerate(read_bytes(path, MAX_LIST_BYTES).splitlines(), 1):
        if text.strip():
            lines.append(_parse_line(f"{path}, line {number}", number, text))
    if not lines:
        raise UserError(f"{path} holds no codes: give the JSON lines that `seed-jax tokenize` wrote.")
    return lines


def _parse_line(place: str, number: int, text: bytes) -> CodesLine:
    try:
        record = parse_json(text)
    except ValueError as error:
        raise UserError(f"{place} is not valid JSON ({error}).") from error
    codes = record.get("codes") if isinstance(record, dict) else None
    if not isinstance(codes, list) or not all(type(code) is int for code in codes):
        raise UserError(f'{place}: expected {{"path": ..., "codes": [integers]}}.')
    path = record.get("path")
    return CodesLine(number, path if isinstance(path, str) else None, tuple(codes))


def _check_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that determine the images; refuse a folder with images of other settings."""
    settings = {"model": str(args.model), "unclip": str(args.decoder)}
    settings["codes"] = hashlib.sha256(read_bytes(args.codes, MAX_LIST_BYTES)).hexdigest()
    settings |= {name: getattr(args, name) for name in _DRAWING_OPTIONS}
    path = args.out / SETTINGS
    stored = read_json(path, "choose another --out") if path.exists() else settings
    changed = [key for key in settings if stored.get(key) != settings[key]]
    if changed:
        raise UserError(
            f"{args.out} holds images drawn with other settings ({', '.join(changed)}): choose another --out."
        )
    return settings


def _draw(args: argparse.Namespace, settings: dict[str, Any], missing: list[tuple[CodesLine, int, Path]]) -> None:
    import numpy as np  # deferred, with all that needs JAX: wrong arguments are reported before it starts
    from PIL import Image

    from seed_jax.inference.drawing.drawer import Drawer
    from seed_jax.inference.drawing.request import DrawOptions
    from seed_jax.inference.image_tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.load(args.model)
    lines = list({line.number: line for line, _, _ in missing}.values())
    for line in lines:
        _check_codes(f"{args.codes}, line {line.number}", line, tokenizer.config)
    embedded = tokenizer.embed_codes(np.asarray([line.codes for line in lines], np.int32))
    embeddings = {line.number: embedding for line, embedding in zip(lines, embedded, strict=True)}
    del tokenizer  # frees its weights before the decoder's are loaded
    drawer = Drawer.load(args.decoder, dtype=args.dtype, vae_dtype=args.vae_dtype)
    batches = drawer.stream(
        np.stack([embeddings[line.number] for line, _, _ in missing]),
        [seed for _, seed, _ in missing],
        DrawOptions(args.sampler, args.steps, args.guidance_scale, args.noise_level, args.tile),
        batch_size=args.batch_size,
        progress=True,
        prompts=args.prompt,
        negative_prompts=args.negative_prompt,
    )
    paths = iter([path for _, _, path in missing])
    for batch in batches:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / SETTINGS, settings)
        for pixels in batch:
            _save(Image.fromarray(pixels), next(paths))


def _check_codes(place: str, line: CodesLine, config: "SeedTokenizerConfig") -> None:
    if len(line.codes) != config.codes_per_image:
        raise UserError(
            f"{place} has {len(line.codes)} codes, but this tokenizer has {config.codes_per_image} per image."
        )
    if not all(0 <= code < config.num_codes for code in line.codes):
        raise UserError(
            f"{place} has a code outside of 0 to {config.num_codes - 1}: it is of another tokenizer, or damaged."
        )


def _original(line: CodesLine) -> "Image.Image | None":
    """Return the image that the codes came from, if it still exists."""
    if line.path is None or not Path(line.path).is_file():
        return None
    from seed_jax import images

    try:
        return images.load(line.path)
    except UserError:
        return None


def _save(image: "Image.Image", path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
