"""Options of the image tokenizer that `tokenize` and `data build` share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports JAX, which --help must not wait for
    from seed_jax.inference.image_tokenizer import ImageTokenizer

INTERPOLATIONS = ("bicubic", "bilinear")  # of `seed_jax.images`
PRECISIONS = ("float32", "bfloat16_3x", "bfloat16")  # of `seed_jax.inference.image_tokenizer`


def add_encoding_options(group: argparse._ArgumentGroup, *, batch_size: int) -> None:
    """Add the options that `load_tokenizer` reads, except --model; `batch_size` is the default."""
    group.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        metavar="N",
        help="images per batch over all devices (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of ViT and Q-Former; lower ones are faster on accelerators and change codes that are near ties (default: "
        "float32 on a CPU, else bfloat16_3x)",
    )
    group.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        help="of the resize (default: as the original's corpora: bilinear, for SEED-1 bicubic)",
    )
    group.add_argument("--keep-ratio", action="store_true", help="center-crop instead of changing the aspect ratio")


def load_tokenizer(args: argparse.Namespace) -> "ImageTokenizer":
    """Load the image tokenizer `args.model`, data-parallel over the devices of this host."""
    import jax  # deferred: --help needs no JAX

    from seed_jax.inference.image_tokenizer import ImageTokenizer, Preprocessing, default_precision
    from seed_jax.precision import Precision

    devices = jax.local_devices()
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("batch",), auto, devices=devices) if len(devices) > 1 else None
    return ImageTokenizer.load(
        args.model,
        precision=Precision(compute=args.precision or default_precision(jax.default_backend())),
        preprocessing=Preprocessing(args.interpolation, args.keep_ratio),
        batch_size=args.batch_size,
        mesh=mesh,
    )
