"""`seed-jax generate --prompt`: answer one prompt and print the answer."""

import argparse
import json
import logging
from pathlib import Path

from seed_jax.cli.generation_loading import (
    contains_images,
    encode_negative_prompt,
    load_config,
    load_model,
    log_decoder_hint,
    log_unused_options,
    open_images,
    requires_images,
)
from seed_jax.inference.answers import format_segments, log_image_validity, save_images, to_dict
from seed_jax.inference.chat.prompts import USER, Message, build_prompt, check_placeholders, interleave
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.sampling_params import SamplingParams


def run(args: argparse.Namespace, params: SamplingParams) -> None:
    """Answer `args.prompt`."""
    # Inputs are validated before gigabytes of weights are loaded.
    groups = [open_images(path, None if kind == "image" else args.frames) for kind, path in args.visual_inputs]
    check_placeholders(args.prompt, len(groups))
    images = [image for group in groups for image in group]
    log_unused_options(params, args.negative_prompt)
    config = load_config(args)
    folder: Path | None = args.out if config.decoder is not None else None
    draws = folder is not None
    if requires_images(params) and not draws:
        log_decoder_hint(config)
    model = load_model(args, config, [params], num_images=len(images), draws=draws)
    vocabulary = model.generator.vocabulary
    message = Message(USER, interleave(args.prompt, model.encode(images), [len(group) for group in groups]))
    prompt = build_prompt([message], model.style, vocabulary)
    negative = encode_negative_prompt(model, args.negative_prompt)
    (answer,) = model.generator.generate([Request(prompt, params, negative)])
    paths = save_images(model, answer.segments, folder, "image", params.seed) if folder is not None else []
    if params.mode == "none":
        log_image_validity([answer], vocabulary.boi)
    if args.json:
        print(json.dumps(to_dict(answer, paths), ensure_ascii=False))
    else:
        print("\n".join(format_segments(answer.segments, paths)))
    if contains_images([answer]) and not draws and not requires_images(params):
        log_decoder_hint(config)
    if answer.finish_reason == "interrupted":
        logging.warning("Interrupted: the answer is incomplete.")
