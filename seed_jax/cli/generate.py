"""`seed-jax generate`: answers of text and images to prompts of text and pictures."""

import argparse
import json
import logging
from pathlib import Path

from seed_jax.cli import generate_batch
from seed_jax.cli.generation_options import add_model_options, add_settings, load, open_pictures, settings_of
from seed_jax.errors import UserError
from seed_jax.inference.answers import as_dict, described, report_images, save_pictures
from seed_jax.inference.chat.prompts import USER, Turn, build_prompt, check_placeholders, interleave
from seed_jax.inference.generation.generator import Generation, Request
from seed_jax.inference.generation.sampling_params import Settings


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("generate", help=__doc__, description=run.__doc__)
    add_model_options(parser, style="base")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="T", help="text; <image> marks where each picture or video goes")
    what.add_argument("--batch", type=Path, metavar="FILE", help=generate_batch.HELP)
    for flag, kind in (("--image", "picture"), ("--video", "video")):
        parser.add_argument(
            flag, dest="shown", action="append", type=lambda path, kind=kind: (kind, path), default=[], metavar="F",
            help=f"{kind} (before the text by default)",
        )  # fmt: skip
    parser.add_argument("--frames", type=int, default=4, metavar="N", help="of each video (default: %(default)s)")
    parser.add_argument("--negative-prompt", metavar="T", help="what guidance leads away from")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts at a time (default: 8)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of drawn pictures and a batch's answers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, Settings())
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Answer one prompt, or a file of them; with a decoder, images of answers become PNG files in --out."""
    settings = settings_of(args)
    if args.decoder and not args.out:
        raise UserError("--decoder draws PNG files: say with --out in which folder.")
    if args.batch:
        generate_batch.run(args, settings)
    else:
        _one(args, settings)


def _one(args: argparse.Namespace, settings: Settings) -> None:
    # Before gigabytes of weights: bad input should fail at once.
    shown = [open_pictures(path, None if kind == "picture" else args.frames) for kind, path in args.shown]
    check_placeholders(args.prompt, len(shown))
    pictures = [picture for group in shown for picture in group]
    model = load(args, settings, pictures=len(pictures))
    turn = Turn(USER, interleave(args.prompt, model.encode(pictures), [len(group) for group in shown]))
    words = model.generator.vocabulary
    prompt = build_prompt([turn], args.style, words)
    negative = args.negative_prompt
    away = None if negative is None else [words.bos, *words.encode(negative, plain=True)]
    (answer,) = model.generator.generate([Request(prompt, settings, away)])
    paths = save_pictures(model, answer.segments, args.out, "picture", settings.seed) if args.decoder else []
    if settings.mode == "none":
        report_images([answer], words.boi)
    print(as_json(answer, paths) if args.json else "\n".join(described(answer.segments, paths)))
    if answer.stopped == "interrupted":
        logging.warning("Interrupted: this is what there was.")


def as_json(answer: Generation, paths: list[Path]) -> str:
    return json.dumps(as_dict(answer, paths), ensure_ascii=False)
