"""`seed-jax data build`: foreign formats to shards; `seed-jax data sources`: which formats there are."""

import argparse
import dataclasses
import inspect
import sys
import time
from pathlib import Path

from seed_jax.data.build import reports
from seed_jax.data.build.build import build
from seed_jax.data.build.encoding import Encoder
from seed_jax.data.build.filters import ORIGINAL, Filters
from seed_jax.data.build.reports import BAD_LOG
from seed_jax.data.build.settings import BadLimit, Settings, Share
from seed_jax.data.inspect.summary import summary
from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.sources import SOURCES, open_source, options_of
from seed_jax.errors import UserError
from seed_jax.images import INTERPOLATIONS

_POLL_SECONDS = 1.0


def add_parser(commands: argparse._SubParsersAction) -> None:
    text = "foreign formats to shards, tokenising pictures on the way; resumable"
    parser = commands.add_parser("build", help=text, description=build.__doc__)
    parser.add_argument("--source", required=True, metavar="KIND", help="kind of input, see `seed-jax data sources`")
    parser.add_argument("--from", dest="paths", required=True, nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="image tokenizer; without it pictures are stored as files"
    )
    _add_source_options(parser.add_argument_group("what some kinds of source take"))
    _add_filters(parser.add_argument_group("filters; what they leave out is counted, not bad"))
    parser.add_argument("--batch-size", type=int, default=64, help="pictures encoded at once, on all devices together")
    parser.add_argument("--interpolation", choices=sorted(INTERPOLATIONS), default="bilinear")
    parser.add_argument("--keep-ratio", action="store_true", help="crop the centre instead of squashing")
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--shard-size", type=int, default=Settings.shard_size, help="input records for each shard")
    parser.add_argument("--workers", type=int, help="threads that decode pictures (default: one for each core)")
    parser.add_argument("--max-bad", default="1%", help="stop when more records than this are bad: a share or a number")
    parser.add_argument(
        "--share",
        metavar="I/N",
        help="make only the I-th of N shares; default: on several hosts of a pod or cluster, each host's own",
    )
    parser.set_defaults(run=run_build)


def _add_source_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--images", type=Path, metavar="DIR", help="where the pictures or videos of lists lie")
    group.add_argument("--columns", metavar="A,B,...", help="columns that become items, in this order")
    group.add_argument("--frames", type=int, metavar="N", help="frames of each video (default: 4)")
    group.add_argument("--split", metavar="NAME", help="part of the data set (default: train)")


def _add_filters(group: argparse._ArgumentGroup) -> None:
    original = {name: f"the original: {value:.4g}" for name, value in ORIGINAL.items()}
    group.add_argument(
        "--min-similarity", type=float, metavar="S", help=f"of picture and text ({original['min_similarity']})"
    )
    group.add_argument("--min-size", type=int, metavar="PIXELS", help=f"of both sides ({original['min_size']})")
    group.add_argument(
        "--max-aspect", type=float, metavar="R", help=f"longer side / shorter side ({original['max_aspect']})"
    )


def add_sources_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("sources", help="which kinds of input `data build` reads")
    parser.add_argument("kind", nargs="?", metavar="KIND", help="describe this one")
    parser.set_defaults(run=run_sources)


def run_build(args: argparse.Namespace) -> int:
    """Build; exit code 0 also where other shares are still to be made."""
    filters = Filters(args.min_similarity, args.min_size, args.max_aspect)
    settings = Settings(shard_size=args.shard_size, max_bad=BadLimit.parse(args.max_bad), filters=filters)
    if args.workers is not None:
        settings = dataclasses.replace(settings, workers=args.workers)
    columns = [name.strip() for name in args.columns.split(",")] if args.columns else None
    source = open_source(
        args.source, args.paths, images=args.images, columns=columns, frames=args.frames, split=args.split
    )
    share = _share(args.share) if args.share else _share_of_this_host()
    encoder = None if args.model is None else _load_encoder(args)
    manifest = build(source, args.out, encoder=encoder, settings=dataclasses.replace(settings, share=share))
    if manifest is None and args.share is None:
        manifest = _wait_for_others(args.out)
    if manifest is None:
        print(f"Share {args.share} of {args.out} is complete; run the other shares to finish.")
        return 0
    print("\n".join(summary(args.out, manifest)))
    if (args.out / BAD_LOG).stat().st_size:
        print(f"bad records by name: {args.out / BAD_LOG}")
    return 0


def run_sources(args: argparse.Namespace) -> int:
    if args.kind and args.kind not in SOURCES:
        raise UserError(f"There is no source of kind {args.kind!r}; there are {', '.join(sorted(SOURCES))}.")
    for kind in [args.kind] if args.kind else sorted(SOURCES):
        about = inspect.getdoc(sys.modules[SOURCES[kind].__module__]) or ""
        options = " ".join(f"--{name}" for name in options_of(kind))
        print(f"{kind}: {about if args.kind else about.splitlines()[0]}")
        print(f"    options: {options or 'none'}")
    return 0


def _share(text: str) -> Share:
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--share {text!r} is no share: expected I/N, such as 0/4.") from None
    return Share(index, count)


def _share_of_this_host() -> Share:
    """Return this process's share of the work units; on one host, all of them."""
    import jax  # late: `--share` and everything else works without

    from seed_jax import distributed

    distributed.initialize()
    return Share(jax.process_index(), jax.process_count())


def _wait_for_others(out: Path) -> Manifest:
    """Wait until all hosts are finished: one that leaves early would take the others' coordinator with it."""
    print(f"This host's share of {out} is complete; waiting for the others.", file=sys.stderr)
    while (manifest := reports.finished(out)) is None:
        time.sleep(_POLL_SECONDS)
    return manifest


def _load_encoder(args: argparse.Namespace) -> Encoder:
    import jax

    from seed_jax.inference.image_tokenizer import ImageTokenizer, PictureEncoder, Preprocessing
    from seed_jax.precision import Precision

    devices = jax.local_devices()
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("batch",), auto, devices=devices) if len(devices) > 1 else None
    tokenizer = ImageTokenizer.load(
        args.model,
        precision=Precision(compute=args.compute_dtype),
        preprocessing=Preprocessing(args.interpolation, args.keep_ratio),
        batch_size=args.batch_size,
        mesh=mesh,
    )
    return PictureEncoder(tokenizer)
