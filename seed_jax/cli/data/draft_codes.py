"""`seed-jax data draft-codes`: the first draft of an image's codes for parallel decoding."""

import argparse
from pathlib import Path

from seed_jax.errors import UserError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `draft-codes`."""
    parser = commands.add_parser(
        "draft-codes",
        help="make the draft of parallel decoding",
        description="Write the most frequent code of each position of an image, from which parallel decoding "
        "(generate --parallel-decoding) starts where the prompt holds no image.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="shard directories with codes")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="JSON file, such as MODEL/draft_codes.json"
    )
    parser.add_argument(
        "--images", type=int, default=100_000, metavar="N", help="images to count (default: %(default)s)"
    )
    parser.set_defaults(run=run_draft_codes)


def run_draft_codes(args: argparse.Namespace) -> int:
    """Count the codes and write the file."""
    from seed_jax.data.inspect.code_usage import most_frequent_codes
    from seed_jax.files import write_json

    if args.images < 1:
        raise UserError(f"--images is {args.images}, expected at least 1.")
    if not args.out.parent.is_dir():
        raise UserError(f"The folder of --out {args.out} does not exist: create {args.out.parent}.")
    codes = most_frequent_codes(args.directories, args.images)
    write_json(args.out, {"draft_codes": codes})
    print(f"{args.out}: {' '.join(map(str, codes))}")
    return 0
