"""What `generate` and `chat` have in common: which model, how it answers, and whether it fits."""

import argparse
import logging
from pathlib import Path

from seed_jax import images, video
from seed_jax.errors import UserError
from seed_jax.inference import memory_plan
from seed_jax.inference.chat.prompts import STYLES
from seed_jax.inference.generation.sampling_params import EARLY_STOPPING, Settings
from seed_jax.inference.memory_plan import Workload
from seed_jax.inference.seed_llama import Parts, Picture, SeedLlama
from seed_jax.models.nn.quantized import SCHEMES


def add_model_options(parser: argparse.ArgumentParser, style: str) -> None:
    """Add what says which model is loaded, and how."""
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory or training workdir")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="image tokenizer, if not the model's own")
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="unCLIP decoder, which draws images as PNG files")
    parser.add_argument("--style", default=style, choices=sorted(STYLES), help="of prompts (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16, float32 on a CPU")
    kinds = sorted(SCHEMES)
    parser.add_argument("--quantize", choices=kinds, help="round the language model's kernels while loading")
    parser.add_argument("--quantize-vit", choices=kinds, help="round those of the tokenizer's ViT; codes may change")
    parser.add_argument("--memory", metavar="SIZE", help="refuse what needs more, e.g. 16GiB (default: the device's)")


def add_settings(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Add how prompts are answered; `settings` are the defaults."""

    def number(name: str, meaning: str) -> None:
        kind, default = type(getattr(settings, name)), getattr(settings, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=f"{meaning} (default: {default})")

    number("max_new_tokens", "most tokens of an answer; an image takes 34")
    number("temperature", "0 takes the likeliest tokens, 1 draws them as they come")
    number("top_k", "draw from the k likeliest tokens; 0: all")
    number("top_p", "draw from the likeliest tokens of this probability together")
    number("min_p", "leave out tokens below this share of the likeliest one's probability")
    number("seed", "of the draws")
    number("beams", "width of the beam search; with a temperature beams are drawn")
    number("length_penalty", "beams are ranked by log p / length ** penalty")
    parser.add_argument("--early-stopping", choices=EARLY_STOPPING, default=settings.early_stopping, help="of beams")
    number("guidance_scale", "lead away from the negative prompt; 1: no guidance")
    parser.add_argument("--stop", action="append", default=[], metavar="T", help="text that ends an answer")
    parser.add_argument("--images", type=int, metavar="N", help="exactly so many images")
    mode = parser.add_mutually_exclusive_group()
    for flag, name, meaning in (
        ("--force-image", "image", "begin the answer with an image"),
        ("--some-image", "some", "at least one image"),
        ("--text-only", "text", "no image"),
        ("--no-grammar", "none", "do not enforce whole images, as in the original"),
    ):
        mode.add_argument(flag, dest="mode", action="store_const", const=name, help=meaning)
    parser.set_defaults(mode="free")


def settings_of(args: argparse.Namespace) -> Settings:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "beams", "length_penalty",
             "early_stopping", "guidance_scale", "mode", "images")  # fmt: skip
    return Settings(stop=tuple(args.stop), **{name: getattr(args, name) for name in names})


def parts_of(args: argparse.Namespace) -> Parts:
    return Parts(args.model, args.tokenizer, args.decoder, args.dtype, args.quantize, args.quantize_vit)


def load(args: argparse.Namespace, settings: Settings, *, prompts: int = 1, pictures: int = 0) -> SeedLlama:
    """Print what will take how much memory, refuse what cannot fit, and load the language model."""
    guided = settings.guidance_scale != 1.0
    work = Workload(prompts, settings.beams, guided, new_tokens=settings.max_new_tokens)
    planned = memory_plan.plan_parts(parts_of(args), work, pictures=pictures)
    limit = memory_plan.parse_size(args.memory) if args.memory else memory_plan.device_memory()
    logging.info("Memory, for a prompt of up to %d tokens:\n  %s", work.prompt_length, "\n  ".join(planned.lines()))
    planned.check(limit)
    return SeedLlama.of(parts_of(args), args.style)


def open_pictures(path: str, frames: int | None = None) -> list[Picture]:
    """Return a picture, or `frames` pictures of a video."""
    if frames is None:
        return [images.load(path)]
    if frames < 1:
        raise UserError(f"--frames {frames}: expected at least 1.")
    return list(video.frames(Path(path), frames))
