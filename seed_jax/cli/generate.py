"""`seed-jax generate`: one answer of text and image codes to a prompt of text and pictures."""

import argparse
import json
from pathlib import Path

import jax
from PIL import Image

from seed_jax import images
from seed_jax.errors import UserError
from seed_jax.inference.chat import STYLES, USER, Turn, build_prompt, check_placeholders, interleave
from seed_jax.inference.generate import Generation, Generator
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.language_model import LanguageModel, load_language_model
from seed_jax.inference.segments import Segment, TextSegment
from seed_jax.precision import Precision


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("generate", help=__doc__)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory or training workdir")
    parser.add_argument("--prompt", required=True, metavar="T", help="text; <image> marks where each picture goes")
    parser.add_argument(
        "--image", action="append", default=[], metavar="F", help="picture (before the text by default)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="image tokenizer, if not the model's own")
    parser.add_argument("--style", default="base", choices=sorted(STYLES), help="of the prompt (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, float32 on a CPU")
    mode = parser.add_mutually_exclusive_group()
    for flag, name, meaning in (
        ("--force-image", "image", "begin the answer with an image"),
        ("--text-only", "text", "draw no image"),
        ("--no-grammar", "none", "do not enforce whole images, as in the original"),
    ):
        mode.add_argument(flag, dest="mode", action="store_const", const=name, help=meaning)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run, mode="free")


def run(args: argparse.Namespace) -> None:
    """Load, encode the pictures, generate, print."""
    pictures = [images.load(path) for path in args.image]  # before gigabytes of weights: bad input should fail at once
    check_placeholders(args.prompt, len(pictures))
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = load_language_model(args.model, dtype)
    codes = _encode(pictures, args, model) if pictures else []
    turn = Turn(USER, interleave(args.prompt, codes))
    prompt = build_prompt([turn], args.style, model.vocabulary)
    generator = Generator(model.config, model.params, model.vocabulary, precision=Precision(dtype, dtype))
    (answer,) = generator.generate([prompt], max_new_tokens=args.max_new_tokens, mode=args.mode)
    print(_as_json(answer) if args.json else "\n".join(map(_as_line, answer.segments)))


def _encode(pictures: list[Image.Image], args: argparse.Namespace, model: LanguageModel) -> list[list[int]]:
    directory, known = args.tokenizer or model.image_tokenizer, model.vocabulary.num_codes
    if directory is None:
        raise UserError(f"{args.model} names no image tokenizer: give one with --tokenizer to use --image.")
    tokenizer = ImageTokenizer.load(directory, batch_size=len(pictures))
    if tokenizer.config.num_codes != known:
        raise UserError(
            f"The image tokenizer {directory} has {tokenizer.config.num_codes} codes but the vocabulary of "
            f"{args.model} has {known}: use the image tokenizer that the model was trained with."
        )
    return tokenizer.encode(pictures).tolist()


def _as_json(answer: Generation) -> str:
    segments = [segment.to_dict() for segment in answer.segments]
    return json.dumps({"segments": segments, "ids": list(answer.ids), "stopped": answer.stopped}, ensure_ascii=False)


def _as_line(segment: Segment) -> str:
    if isinstance(segment, TextSegment):
        return segment.text
    found = segment.to_dict()
    return f"[{found['type']}] {' '.join(map(str, found.get('codes', found.get('ids'))))}"
