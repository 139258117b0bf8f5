"""The command-line options that `generate` and `chat` share.

This module imports neither JAX nor NumPy, so that `--help` answers at once.
"""

import argparse
from pathlib import Path
from typing import Any

from seed_jax.inference.generation.sampling_params import EARLY_STOPPING, LENGTH_PENALTY_ON, SamplingParams

PROMPT_STYLES = ("base", "llama2", "seed1", "vicuna")
QUANTIZATIONS = ("int4", "int8")
DTYPES = ("bfloat16", "float32")


def add_model_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that select and load the models; `required` says whether --model must be given."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=required, type=Path, metavar="DIR", help="model directory, bundle or training workdir"
    )
    group.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="image tokenizer (default: the one that the model names)"
    )
    group.add_argument(
        "--style", choices=PROMPT_STYLES, help="prompt style (default: the one that the model names, otherwise base)"
    )
    group.add_argument("--dtype", choices=DTYPES, help="compute dtype (default: bfloat16; float32 on a CPU)")
    group.add_argument("--quantize", choices=QUANTIZATIONS, help="quantize the language model's kernels while loading")
    group.add_argument(
        "--quantize-vit", choices=QUANTIZATIONS, help="quantize the image tokenizer's ViT; codes may change"
    )
    group.add_argument(
        "--memory", metavar="SIZE", help="refuse to load what needs more, e.g. 16GiB (default: the device's memory)"
    )
    group.add_argument("--memory-plan", action="store_true", help="print how much memory each part needs")


def add_decoding_options(parser: argparse.ArgumentParser, defaults: SamplingParams) -> Any:
    """Add the fields of `SamplingParams` that concern text and images alike; return their argument group."""
    group = parser.add_argument_group("decoding")

    def number(name: str, description: str) -> None:
        default = getattr(defaults, name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{description} (default: {default})",
        )

    number("max_new_tokens", "maximum length of an answer; an image takes 34 tokens")
    number("temperature", "0 decodes greedily, 1 samples from the model's distribution")
    number("top_k", "sample from the k most likely tokens; 0: from all")
    number("top_p", "nucleus sampling: from the smallest set of tokens whose cumulative probability reaches p")
    number("min_p", "exclude tokens below this fraction of the most likely token's probability")
    number("seed", "seed of sampling and drawing")
    number("beams", "width of the beam search; with a temperature, beams are sampled")
    number("length_penalty", "beams are ranked by log p / length ** penalty")
    group.add_argument(
        "--length-penalty-on",
        choices=LENGTH_PENALTY_ON,
        default=defaults.length_penalty_on,
        help="what --length-penalty counts: the answer, or prompt and answer as the original's transformers 4.30 "
        f"(default: {defaults.length_penalty_on})",
    )
    group.add_argument(
        "--early-stopping",
        choices=EARLY_STOPPING,
        default=defaults.early_stopping,
        help=f"when a beam search ends (default: {defaults.early_stopping})",
    )
    number("guidance_scale", "classifier-free guidance; 1 disables it")
    group.add_argument(
        "--parallel-decoding",
        action="store_true",
        help="decode the codes of an image in parallel (Jacobi decoding): the same tokens in fewer, larger passes",
    )
    group.add_argument(
        "--draft-codes",
        type=Path,
        metavar="FILE",
        help="with --parallel-decoding, the first draft of an image, from data draft-codes (default: draft_codes.json "
        "of the model directory, if there is one)",
    )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="string that ends an answer; may be repeated"
    )
    return group


def add_image_options(parser: argparse.ArgumentParser) -> Any:
    """Add the image constraints and the decoder; return their argument group."""
    group = parser.add_argument_group("images")
    mode = group.add_mutually_exclusive_group()
    for flag, name, description in (
        ("--force-image", "image", "begin the answer with an image"),
        ("--some-image", "some", "generate at least one image"),
        ("--text-only", "text", "generate no image"),
        ("--no-grammar", "none", "do not enforce complete images, as in the original"),
    ):
        mode.add_argument(flag, dest="mode", action="store_const", const=name, help=description)
    parser.set_defaults(mode="free")
    group.add_argument("--num-images", type=int, metavar="N", help="generate exactly N images")
    group.add_argument(
        "--decoder", type=Path, metavar="DIR", help="image decoder, to draw images (default: the one the model names)"
    )
    return group


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Build the `SamplingParams` of parsed arguments."""
    return SamplingParams(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        stop=tuple(args.stop),
        mode=args.mode,
        num_images=args.num_images,
        beams=args.beams,
        length_penalty=args.length_penalty,
        length_penalty_on=args.length_penalty_on,
        early_stopping=args.early_stopping,
        guidance_scale=args.guidance_scale,
        parallel_decoding=args.parallel_decoding,
    )
