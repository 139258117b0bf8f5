"""`seed-jax data show`: what is in shards or a mixture, in the terminal or as one HTML page."""

import argparse
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.data.batches.mixture_config import WEIGHT_BY, make_parts
from seed_jax.data.batches.record_stream import Part
from seed_jax.data.inspect.code_usage import shard_code_stats
from seed_jax.data.inspect.html import Decoder
from seed_jax.data.inspect.report import RECORDS, Look
from seed_jax.data.inspect.summary import described, summary
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.files import write_bytes

_SHOWN, _SHOWN_ON_PAGE = 3, 12


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("show", help="what is in a directory of shards, or in a mixture", description=__doc__)
    parser.add_argument(
        "what",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="directories of shards, or a mixture such as configs/data/sft.py",
    )
    parser.add_argument(
        "--samples",
        type=int,
        help=f"how many records (default {_SHOWN}, with --html {_SHOWN_ON_PAGE}; of every part one)",
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--codes", type=int, metavar="K", help="count the use of a codebook of K codes in all records")
    parser.add_argument("--verify", action="store_true", help="compare every shard with its recorded hash")
    rendering = parser.add_argument_group("tokens, lengths and packing")
    rendering.add_argument("--vocabulary", type=Path, metavar="DIR", help="text tokenizer: show what is trained on")
    rendering.add_argument("--task", help="template, for directories (a mixture has its own)")
    rendering.add_argument("--param", nargs="+", default=[], metavar="KEY=VALUE", help="parameters of the template")
    rendering.add_argument("--root", help="where the shards of a mixture lie (default: as the mixture says)")
    rendering.add_argument("--weight-by", choices=WEIGHT_BY, default="samples")
    rendering.add_argument(
        "--sequence-length", type=int, default=2048, help="tokens of a packed row (default %(default)s)"
    )
    rendering.add_argument(
        "--records", type=int, default=RECORDS, help="records of a part to measure (default %(default)s)"
    )
    drawing = parser.add_argument_group("page")
    drawing.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs nothing else")
    drawing.add_argument("--model", type=Path, metavar="DIR", help="image tokenizer, to draw codes on the page")
    drawing.add_argument("--unclip", type=Path, metavar="DIR", help="decoder, to draw codes on the page")
    drawing.add_argument("--steps", type=int, default=20, help="of the decoder (default %(default)s)")
    parser.set_defaults(run=run_show)


def run_show(args: argparse.Namespace) -> int:
    look = _look(args)
    count = max(_SHOWN_ON_PAGE if args.html else _SHOWN, len(look.parts)) if args.samples is None else args.samples
    for shards in look.shards:
        for each in getattr(shards, "several", [shards]):
            if args.verify:
                open_shards(each.directory, verify=True)
            print("\n".join(summary(each.directory, each.manifest)))
            if args.codes:
                print("\n".join(shard_code_stats(each.directory, args.codes).lines()))
    numbers = _numbers(look, args.first, count)
    print("\n".join(look.lines()))
    if args.html:
        html = look.html(", ".join(map(str, args.what)), numbers, _decoder(args))
        write_bytes(args.html, html.encode())
        print(f"page: {args.html}")
        return 0
    for part, number in numbers:
        name = f"record {number}" + (f" of {look.names[part]}" if len(look.parts) > 1 else "")
        print("\n".join(["", name, *described(look.shards[part][number])]))
    return 0


def _look(args: argparse.Namespace) -> Look:
    vocab = Vocabulary.load(args.vocabulary) if args.vocabulary else None
    mixtures = [path for path in args.what if path.suffix == ".py"]
    if mixtures and len(args.what) > 1:
        raise UserError("Give either directories of shards or one mixture.")
    if args.records < 1 or args.sequence_length < 2:
        raise UserError(f"--records {args.records} and --sequence-length {args.sequence_length} are too small.")
    if (args.task is None) != (vocab is None) and not mixtures:
        raise UserError("Give --vocabulary and --task together: a template makes tokens of a vocabulary.")
    if mixtures:
        parts = _mixture(mixtures[0], args.root, vocab, args.weight_by)
    elif vocab:
        params = dict(map(_param, args.param))
        same = {"task": args.task, "params": params}
        weights = [len(open_shards(path)) for path in args.what]  # directories side by side count by their size
        described = [
            {"path": str(path), "weight": weight, **same} for path, weight in zip(args.what, weights, strict=True)
        ]
        parts = make_parts(described, vocab, args.weight_by)
    else:
        parts = [Part(path) for path in args.what]
    return Look(parts, vocab, args.sequence_length, args.records)


def _mixture(path: Path, root: str | None, vocab: Vocabulary | None, weight_by: str) -> list[Part]:
    """Return the parts of a file that has a function `parts(root)`."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a mixture such as configs/data/pretrain.py.")
    found = runpy.run_path(str(path)).get("parts")
    if not callable(found):
        raise UserError(f"{path} has no function parts(root), as configs/data/pretrain.py has.")
    described = found(root) if root else found()
    if vocab is None:
        return [Part(tuple(each["path"]) if isinstance(each["path"], list) else each["path"]) for each in described]
    return make_parts(described, vocab, weight_by)


def _param(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--param {text!r} is no parameter: expected KEY=VALUE.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _numbers(look: Look, first: int, count: int) -> list[tuple[int, int]]:
    """Return the (part, record) to show: as many of each part, in its order."""
    total = max(map(len, look.shards))
    if count < 0 or not 0 <= first < total:
        raise UserError(f"--first {first} --samples {count}: there are records 0 to {total - 1}.")
    each = -(-count // len(look.parts))
    ranges = [range(first, min(first + each, len(shards))) for shards in look.shards]
    return [(part, number) for part, numbers in enumerate(ranges) for number in numbers][:count]


def _decoder(args: argparse.Namespace) -> Decoder | None:
    if args.model is None and args.unclip is None:
        return None
    if args.model is None or args.unclip is None:
        raise UserError("Give --model and --unclip together: codes become an embedding, the decoder draws it.")
    from PIL import Image

    from seed_jax.inference.drawing.drawer import Drawer, DrawOptions
    from seed_jax.inference.image_tokenizer import ImageTokenizer

    tokenizer, drawer = ImageTokenizer.load(args.model), Drawer.load(args.unclip)
    options = DrawOptions(steps=args.steps)

    def draw(codes: np.ndarray) -> Sequence[Image.Image]:
        drawn = drawer.draw(tokenizer.embed_codes(codes.astype(np.int32)), [0] * len(codes), options)
        return [Image.fromarray(np.asarray(pixels)) for pixels in drawn]

    return draw
