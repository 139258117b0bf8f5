"""`seed-jax generate`: answers of text and images to prompts of text, images and videos."""

import argparse
from pathlib import Path

from seed_jax.cli.generation_options import (
    add_decoding_options,
    add_image_options,
    add_model_options,
    sampling_params,
)
from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import SamplingParams

SUMMARY = "answer prompts with text and images"
DESCRIPTION = (
    "Answer one prompt, or a file of prompts, with text and images. With an image decoder and --out, generated images "
    "are written as PNG files; otherwise they are printed as their codes."
)
BATCH_HELP = (
    'JSON lines {"prompt", "images": [paths], "id", "negative_prompt", and decoding options such as "seed" or '
    '"num_images"}; answers go to answers.jsonl in --out; run again to resume'
)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its arguments."""
    parser = subparsers.add_parser("generate", help=SUMMARY, description=DESCRIPTION)
    add_model_options(parser)
    prompt = parser.add_argument_group("prompt")
    source = prompt.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="<image> marks where each image or video is inserted")
    source.add_argument("--batch", type=Path, metavar="FILE", help=BATCH_HELP)
    for flag in ("--image", "--video"):
        prompt.add_argument(
            flag,
            dest="visual_inputs",
            action="append",
            type=_image_path if flag == "--image" else _video_path,
            default=[],
            metavar="FILE",
            help=f"{flag[2:]} of the prompt, before the text by default; may be repeated",
        )
    prompt.add_argument("--frames", type=int, default=4, metavar="N", help="frames per video (default: 4)")
    prompt.add_argument("--negative-prompt", metavar="TEXT", help="text that guidance moves away from")
    decoding = add_decoding_options(parser, SamplingParams())
    decoding.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts at a time (default: 8)")
    add_image_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="directory for drawn images and a batch's answers")
    output.add_argument("--json", action="store_true", help="print the answer as a JSON object")
    parser.set_defaults(run=run)


def _image_path(path: str) -> tuple[str, str]:
    return "image", path


def _video_path(path: str) -> tuple[str, str]:
    return "video", path


def run(args: argparse.Namespace) -> None:
    """Answer one prompt or a file of prompts."""
    params = sampling_params(args)
    if args.decoder and not args.out:
        raise UserError("--decoder draws PNG files: give their directory with --out.")
    # Imported late: `--help` and wrong arguments are answered without waiting for JAX.
    from seed_jax.cli import generate_batch, generate_prompt

    if args.batch:
        generate_batch.run(args, params)
    else:
        generate_prompt.run(args, params)
