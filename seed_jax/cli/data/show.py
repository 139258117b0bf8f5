"""`seed-jax data show`: inspect shards or a mixture, in the terminal or as one HTML page."""

import argparse
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seed_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from seed_jax.data.batches.record_stream import MixtureComponent
    from seed_jax.data.inspect.html import Decoder
    from seed_jax.data.inspect.report import MixtureReport
    from seed_jax.data.text.vocabulary import Vocabulary

_NUM_SHOWN = 3
_NUM_SHOWN_ON_PAGE = 12


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `show`."""
    parser = commands.add_parser(
        "show",
        help="inspect shards or a mixture",
        description="Inspect shards or a mixture: counts, records, tokens, packing efficiency and code usage, in the "
        "terminal or as one HTML page.",
    )
    parser.add_argument(
        "what",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="shard directories, or one mixture such as configs/data/sft.py",
    )
    _add_records(parser.add_argument_group("records"))
    _add_rendering(parser.add_argument_group("tokens, lengths and packing"))
    _add_page(parser.add_argument_group("HTML page"))
    parser.set_defaults(run=run_show)


def _add_records(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help=f"number of records to show (default: {_NUM_SHOWN}, with --html {_NUM_SHOWN_ON_PAGE}; at least one per "
        "component)",
    )
    group.add_argument("--first", type=int, default=0, metavar="I", help="number of the first record (default: 0)")
    group.add_argument("--codes", type=int, metavar="K", help="count the usage of a codebook of K codes in all records")
    group.add_argument("--verify", action="store_true", help="verify the SHA-256 of every shard")


def _add_rendering(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--vocabulary", type=Path, metavar="DIR", help="text tokenizer: render the training samples")
    group.add_argument("--task", metavar="NAME", help="template, for shard directories (a mixture has its own)")
    group.add_argument("--param", nargs="+", default=[], metavar="KEY=VALUE", help="parameters of the template")
    group.add_argument("--root", metavar="DIR", help="location of a mixture's shards (default: as in the mixture)")
    group.add_argument(
        "--weight-by", choices=["samples", "tokens"], default="samples", help="unit of weights (default: samples)"
    )
    group.add_argument(
        "--sequence-length", type=int, default=2048, metavar="N", help="tokens per packed row (default: 2048)"
    )
    group.add_argument("--records", type=int, metavar="N", help="records to measure per component (default: 2000)")


def _add_page(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained HTML page")
    group.add_argument("--model", type=Path, metavar="DIR", help="image tokenizer, to decode codes on the page")
    group.add_argument("--unclip", type=Path, metavar="DIR", help="diffusion decoder, to decode codes on the page")
    group.add_argument("--steps", type=int, default=20, metavar="N", help="diffusion steps (default: 20)")


def run_show(args: argparse.Namespace) -> int:
    """Print the report, or write it as a page."""
    from seed_jax.data.inspect.code_usage import shard_code_stats
    from seed_jax.data.inspect.summary import record_lines, summary
    from seed_jax.data.shards.shards import open_shards
    from seed_jax.files import write_text

    report = _report(args)
    count = args.samples
    if count is None:
        count = max(_NUM_SHOWN_ON_PAGE if args.html else _NUM_SHOWN, len(report.components))
    for shards in report.directories:
        if args.verify:
            open_shards(shards.directory, verify=True)
        print("\n".join(summary(shards.directory, shards.manifest)))
        if args.codes:
            print("\n".join(shard_code_stats(shards.directory, args.codes).lines()))
    numbers = _record_numbers(report, args.first, count)
    print("\n".join(report.lines()))
    if args.html:
        write_text(args.html, report.html(", ".join(map(str, args.what)), numbers, _decoder(args)))
        print(f"page: {args.html}")
        return 0
    for component, number in numbers:
        name = f"record {number}" + (f" of {report.names[component]}" if len(report.components) > 1 else "")
        print("\n".join(["", name, *record_lines(report.shards[component][number])]))
    return 0


def _report(args: argparse.Namespace) -> "MixtureReport":
    from seed_jax.data.batches.mixture_config import make_mixture
    from seed_jax.data.batches.record_stream import MixtureComponent
    from seed_jax.data.inspect.report import NUM_RECORDS, MixtureReport
    from seed_jax.data.shards.shards import open_shards
    from seed_jax.data.text.vocabulary import Vocabulary

    num_records = NUM_RECORDS if args.records is None else args.records
    if num_records < 1 or args.sequence_length < 2:
        raise UserError(f"--records must be at least 1 and --sequence-length {args.sequence_length} at least 2.")
    mixtures = [path for path in args.what if path.suffix == ".py"]
    if mixtures and len(args.what) > 1:
        raise UserError("Give either shard directories or one mixture.")
    if (args.task is None) != (args.vocabulary is None) and not mixtures:
        raise UserError("Give --vocabulary and --task together: a template renders tokens of a vocabulary.")
    vocab = Vocabulary.load(args.vocabulary) if args.vocabulary else None
    if mixtures:
        components = _load_mixture(mixtures[0], args.root, vocab, args.weight_by)
    elif vocab:
        params = dict(map(_parse_param, args.param))
        entries = [
            # Directories are weighted by their size.
            {"path": str(path), "weight": len(open_shards(path)), "task": args.task, "params": params}
            for path in args.what
        ]
        components = make_mixture(entries, vocab, args.weight_by)
    else:
        components = [MixtureComponent(path) for path in args.what]
    return MixtureReport(components, vocab, args.sequence_length, num_records)


def _load_mixture(path: Path, root: str | None, vocab: "Vocabulary | None", weight_by: str) -> "list[MixtureComponent]":
    """Return the components of a Python file with a function `components(root)`."""
    from seed_jax.data.batches.mixture_config import make_mixture
    from seed_jax.data.batches.record_stream import MixtureComponent

    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a mixture such as configs/data/pretrain.py.")
    components = runpy.run_path(str(path)).get("components")
    if not callable(components):
        raise UserError(f"{path} has no function components(root): see configs/data/pretrain.py for an example.")
    entries: Any = components(root) if root else components()
    if vocab is None:
        paths = [entry["path"] for entry in entries]
        return [MixtureComponent(tuple(path) if isinstance(path, list) else path) for path in paths]
    return make_mixture(entries, vocab, weight_by)


def _parse_param(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--param {text!r} is not a parameter: expected KEY=VALUE.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _record_numbers(report: "MixtureReport", first: int, count: int) -> list[tuple[int, int]]:
    """Return the (component, record) to show: equally many of each component, in order."""
    total = max(map(len, report.shards))
    if count < 0 or not 0 <= first < total:
        raise UserError(f"--first {first} --samples {count}: expected records from 0 to {total - 1}.")
    per_component = -(-count // len(report.components))
    ranges = [range(first, min(first + per_component, len(shards))) for shards in report.shards]
    return [(component, number) for component, numbers in enumerate(ranges) for number in numbers][:count]


def _decoder(args: argparse.Namespace) -> "Decoder | None":
    """Return a function that decodes codes to images, or None without a decoder."""
    if args.model is None and args.unclip is None:
        return None
    if args.model is None or args.unclip is None:
        raise UserError("Give --model and --unclip together: the tokenizer embeds codes, the decoder renders them.")
    import numpy as np
    from PIL import Image

    from seed_jax.inference.drawing.drawer import Drawer, DrawOptions
    from seed_jax.inference.image_tokenizer import ImageTokenizer

    tokenizer = ImageTokenizer.load(args.model)
    drawer = Drawer.load(args.unclip)
    options = DrawOptions(steps=args.steps)

    def decode(codes: "np.ndarray") -> "Sequence[Image.Image]":
        images = drawer.draw(tokenizer.embed_codes(codes.astype(np.int32)), [0] * len(codes), options)
        return [Image.fromarray(np.asarray(pixels)) for pixels in images]

    return decode
