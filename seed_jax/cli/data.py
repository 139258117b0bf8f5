"""`seed-jax data build` and `seed-jax data show`: foreign formats to shards, and what is in them."""

import argparse
import dataclasses
from pathlib import Path

from seed_jax.data.build import build
from seed_jax.data.build_reports import BAD_LOG
from seed_jax.data.build_settings import BadLimit, Settings, Share
from seed_jax.data.pictures import Encoder
from seed_jax.data.shards import open_shards
from seed_jax.data.show import described, summary
from seed_jax.data.sources import SOURCES, open_source
from seed_jax.errors import UserError
from seed_jax.images import INTERPOLATIONS


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("data", help=__doc__)
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_build(
        commands.add_parser("build", help="foreign formats to shards, tokenising pictures on the way; resumable")
    )
    _add_show(commands.add_parser("show", help="what is in a directory of shards"))


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="KIND", help=f"one of {', '.join(sorted(SOURCES))}")
    parser.add_argument("--from", dest="paths", required=True, nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="image tokenizer; without it pictures are stored as files"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="pictures encoded at once, on all devices together")
    parser.add_argument("--interpolation", choices=sorted(INTERPOLATIONS), default="bilinear")
    parser.add_argument("--keep-ratio", action="store_true", help="crop the centre instead of squashing")
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--shard-size", type=int, default=Settings.shard_size, help="input records for each shard")
    parser.add_argument("--workers", type=int, help="threads that decode pictures (default: one for each core)")
    parser.add_argument("--max-bad", default="1%", help="stop when more records than this are bad: a share or a number")
    parser.add_argument(
        "--share", default="0/1", metavar="I/N", help="make only the I-th of N shares, for several machines"
    )
    parser.set_defaults(run=run_build)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--samples", type=int, default=3, help="how many records to print")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--verify", action="store_true", help="compare every shard with its recorded hash")
    parser.set_defaults(run=run_show)


def run_build(args: argparse.Namespace) -> int:
    """Build; exit code 0 also where other shares are still to be made."""
    settings = Settings(shard_size=args.shard_size, max_bad=BadLimit.parse(args.max_bad), share=_share(args.share))
    if args.workers is not None:
        settings = dataclasses.replace(settings, workers=args.workers)
    source = open_source(args.source, args.paths)  # before the model, which takes longer to load
    encoder = None if args.model is None else _load_encoder(args)
    manifest = build(source, args.out, encoder=encoder, settings=settings)
    if manifest is None:
        print(f"Share {args.share} of {args.out} is complete; run the other shares to finish.")
        return 0
    print("\n".join(summary(args.out, manifest)))
    if manifest.dropped:
        print(f"left out, by name: {args.out / BAD_LOG}")
    return 0


def run_show(args: argparse.Namespace) -> int:
    shards = open_shards(args.directory, verify=args.verify)
    if args.samples < 0 or not 0 <= args.first < len(shards):
        raise UserError(
            f"--first {args.first} --samples {args.samples}: {args.directory} has records 0 to {len(shards) - 1}."
        )
    print("\n".join(summary(args.directory, shards.manifest)))
    for number in range(args.first, min(args.first + args.samples, len(shards))):
        print("\n".join(["", f"record {number}", *described(shards[number])]))
    return 0


def _share(text: str) -> Share:
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        raise UserError(f"--share {text!r} is no share: expected I/N, such as 0/4.") from None
    return Share(index, count)


def _load_encoder(args: argparse.Namespace) -> Encoder:
    import jax  # late: everything else works without a device

    from seed_jax.inference.image_tokenizer import ImageTokenizer, Preprocessing
    from seed_jax.inference.picture_encoder import PictureEncoder
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
