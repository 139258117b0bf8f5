"""`seed-jax data build`: foreign formats to shards, tokenizing images on the way."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from seed_jax.cli.tokenizer_options import add_encoding_options, load_tokenizer
from seed_jax.data.build.filters import ORIGINAL_FILTERS, ImageFilters
from seed_jax.data.build.options import BuildOptions, Share, SkipLimit
from seed_jax.errors import UserError

if TYPE_CHECKING:
    from seed_jax.data.build.encoding import ImageEncoder
    from seed_jax.data.shards.manifest import Manifest

_POLL_SECONDS = 1.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `build`."""
    parser = commands.add_parser(
        "build",
        help="build shards from foreign formats",
        description="Build shards from foreign formats, tokenizing images on the way. An interrupted build resumes "
        "with the same command; the shards do not depend on interruptions, workers or hosts.",
    )
    _add_inputs(parser.add_argument_group("input and output"))
    _add_source_options(parser.add_argument_group("options of some kinds of source"))
    _add_filters(parser.add_argument_group("filters (filtered samples are counted, and are not errors)"))
    _add_tokenizer_options(parser.add_argument_group("image tokenizer"))
    _add_build_options(parser.add_argument_group("build"))
    parser.set_defaults(run=run_build)


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--source", required=True, metavar="KIND", help="kind of input: see `seed-jax data sources`")
    group.add_argument(
        "--from", dest="paths", required=True, nargs="+", type=Path, metavar="PATH", help="input files and folders"
    )
    group.add_argument("--out", required=True, type=Path, metavar="DIR", help="shard directory")


def _add_source_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--images", type=Path, metavar="DIR", help="location of the images or videos named in lists")
    group.add_argument("--columns", metavar="A,B,...", help="columns that become items, in this order")
    group.add_argument("--frames", type=int, metavar="N", help="frames per video (default: 4)")
    group.add_argument("--split", metavar="NAME", help="split of the dataset (default: train)")


def _add_filters(group: argparse._ArgumentGroup) -> None:
    original = {name: f"the original uses {value:.4g}" for name, value in ORIGINAL_FILTERS.items()}
    group.add_argument(
        "--min-similarity",
        type=float,
        metavar="S",
        help=f"minimum image-text similarity in the metadata ({original['min_similarity']})",
    )
    group.add_argument(
        "--min-size", type=int, metavar="PIXELS", help=f"minimum of the shorter side ({original['min_size']})"
    )
    group.add_argument(
        "--max-aspect",
        type=float,
        metavar="R",
        help=f"maximum of longer side / shorter side ({original['max_aspect']})",
    )


def _add_tokenizer_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", type=Path, metavar="DIR", help="image tokenizer; without it the image files themselves are stored"
    )
    add_encoding_options(group, batch_size=64)


def _add_build_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--shard-size",
        type=int,
        default=BuildOptions.shard_size,
        metavar="N",
        help="input samples per shard (default: %(default)s)",
    )
    group.add_argument("--workers", type=int, metavar="N", help="threads that decode images (default: one per core)")
    group.add_argument(
        "--max-bad",
        default="1%",
        metavar="LIMIT",
        help="stop if more samples than this are unusable: a percentage or a number (default: 1%%)",
    )
    group.add_argument(
        "--share",
        metavar="I/N",
        help="build only share I of N, counted from 0 (default: on several hosts, the share of each host)",
    )


def run_build(args: argparse.Namespace) -> int:
    """Build; the exit code is 0 also if other shares are still missing."""
    from seed_jax.data.build.build import build
    from seed_jax.data.build.reports import SKIPPED_LOG
    from seed_jax.data.inspect.summary import summary
    from seed_jax.data.sources import open_source

    filters = ImageFilters(args.min_similarity, args.min_size, args.max_aspect)
    options = BuildOptions(shard_size=args.shard_size, max_skipped=SkipLimit.parse(args.max_bad), filters=filters)
    if args.workers is not None:
        options = dataclasses.replace(options, workers=args.workers)
    columns = [name.strip() for name in args.columns.split(",")] if args.columns else None
    source = open_source(
        args.source, args.paths, images=args.images, columns=columns, frames=args.frames, split=args.split
    )
    share = _parse_share(args.share) if args.share else _share_of_this_host()
    encoder = None if args.model is None else _load_encoder(args)
    manifest = build(source, args.out, encoder=encoder, options=dataclasses.replace(options, share=share))
    if manifest is None and args.share is None:
        manifest = _wait_for_other_hosts(args.out)
    if manifest is None:
        print(f"Share {args.share} of {args.out} is complete; run the other shares to finish.")
        return 0
    print("\n".join(summary(args.out, manifest)))
    if (args.out / SKIPPED_LOG).stat().st_size:
        print(f"unusable samples are listed in {args.out / SKIPPED_LOG}")
    return 0


def _parse_share(text: str) -> Share:
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--share {text!r} is not a share: expected I/N, such as 0/4.") from None
    return Share(index, count)


def _share_of_this_host() -> Share:
    """Return this process's share of the shards; on a single host, all of them."""
    import jax

    from seed_jax import distributed

    distributed.initialize()
    return Share(jax.process_index(), jax.process_count())


def _wait_for_other_hosts(out: Path) -> "Manifest":
    """Wait until all hosts are finished: the exit of one process would end the coordinator of the others."""
    from seed_jax.data.build.reports import finished_manifest

    print(f"This host's share of {out} is complete; waiting for the other hosts.", file=sys.stderr)
    while (manifest := finished_manifest(out)) is None:
        time.sleep(_POLL_SECONDS)
    return manifest


def _load_encoder(args: argparse.Namespace) -> "ImageEncoder":
    from seed_jax.inference.image_tokenizer import BatchImageEncoder

    return BatchImageEncoder(load_tokenizer(args))
