"""Loading of models and images for `generate` and `chat`."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from seed_jax import images, video
from seed_jax.errors import UserError
from seed_jax.images import ImageInput
from seed_jax.inference import memory_plan
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, ImageSegment
from seed_jax.inference.memory_plan import Workload
from seed_jax.inference.seed_llama import LoadConfig, SeedLlama


def load_config(args: argparse.Namespace, *, use_decoder: bool = True) -> LoadConfig:
    """Return which models to load; what the options leave open is taken from the model's config.json.

    Args:
        args: parsed arguments.
        use_decoder: whether an image decoder may be loaded.
    """
    config = LoadConfig(
        model=args.model,
        tokenizer=args.tokenizer,
        decoder=args.decoder,
        style=args.style,
        dtype=args.dtype,
        quantize=args.quantize,
        quantize_vit=args.quantize_vit,
        draft_codes=vars(args).get("draft_codes"),  # `serve` has no such option: it decodes token by token
        use_decoder=use_decoder,
    )
    return config.resolve()


def load_model(
    args: argparse.Namespace,
    config: LoadConfig,
    params: Sequence[SamplingParams],
    *,
    prompts: int = 1,
    num_images: int = 0,
    draws: bool = False,
) -> SeedLlama:
    """Check that the models fit into the memory, and load the language model.

    Args:
        args: parsed arguments, of which `memory` and `memory_plan` are used.
        config: the models.
        params: decoding options of the requests.
        prompts: requests at a time.
        num_images: images that are encoded at a time.
        draws: whether the image decoder will be loaded.
    """
    workload = Workload.covering(params, prompts)
    memory_plan.check_directories(
        config, workload, num_images=num_images, draws=draws, limit=args.memory, show=args.memory_plan
    )
    if args.draft_codes and not workload.parallel:
        logging.warning("--draft-codes has no effect without --parallel-decoding.")
    logging.info("loading %s ...", config.model)
    return SeedLlama.from_config(config)


def open_images(path: str, num_frames: int | None = None) -> list[ImageInput]:
    """Read an image, or `num_frames` frames of a video."""
    if num_frames is None:
        return [images.load(path)]
    if num_frames < 1:
        raise UserError(f"--frames is {num_frames}, expected at least 1.")
    return list(video.frames(Path(path), num_frames))


def encode_negative_prompt(model: SeedLlama, text: str | None) -> list[int] | None:
    """Return the token ids of the text that guidance moves away from, if one is given."""
    vocabulary = model.generator.vocabulary
    return None if text is None else [vocabulary.bos, *vocabulary.encode(text, plain=True)]


def log_unused_options(params: SamplingParams, negative_prompt: str | None, where: str = "") -> None:
    """Warn of decoding options that are set but have no effect.

    Args:
        params: decoding options.
        negative_prompt: text that guidance moves away from, if one is given.
        where: prefix of the warning, such as the line of a file.
    """

    def label(name: str) -> str:
        return name if where else f"--{name.replace('_', '-')}"

    for name in params.unused:
        needed = "--temperature above 0" if name in ("top_k", "top_p", "min_p") else "--beams above 1"
        logging.warning("%s%s has no effect without %s.", where, label(name), needed if not where else needed[2:])
    if negative_prompt is not None and not params.guided:
        logging.warning("%s%s has no effect without %s.", where, label("negative_prompt"), label("guidance_scale"))


def requires_images(params: SamplingParams) -> bool:
    """Return whether the options ask for at least one image."""
    return params.mode in ("image", "some") or bool(params.num_images)


def contains_images(answers: Sequence[Generation]) -> bool:
    return any(isinstance(segment, ImageSegment) for answer in answers for segment in answer.segments)


def log_decoder_hint(config: LoadConfig) -> None:
    """Explain how images that are only shown as codes can be drawn."""
    if config.decoder is None:
        logging.info("Images are shown as codes: give an image decoder with --decoder DIR to draw them as PNG files.")
    else:
        logging.info("Images are shown as codes: give --out DIR to draw them with %s.", config.decoder)
