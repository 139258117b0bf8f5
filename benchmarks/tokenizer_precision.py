"""Share of equal codes and images at lower precisions of the image tokenizer, on a CPU that rounds as accelerators do.

    python benchmarks/tokenizer_precision.py --model DIR [--images FOLDER] [--num-images 64]
    python benchmarks/tokenizer_precision.py --blocks 39 --num-images 4

With --model a trained tokenizer encodes the images of a folder, or of the quickstart's world; otherwise random weights
of the released sizes, with fewer ViT blocks on request, encode noise. A CPU computes `bfloat16_3x` exactly: here its
matmuls are replaced by three products of bfloat16 parts, accumulated in float32. Prints a Markdown table: codes and
whole images that equal those of float32, and the error of the vectors that are quantized, relative to their standard
deviation. Codes of a random tokenizer come from a codebook that is drawn around its vectors.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.data.world import make_sample, render
from seed_jax.inference.image_tokenizer import PRECISIONS, ImageTokenizer
from seed_jax.models.tokenizer import vq
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, abstract_params
from seed_jax.precision import Precision
from seed_jax.recipes.pipeline import SEED

THREE_PASSES = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a trained tokenizer: model directory or workdir")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="images for --model (default: drawn ones)")
    parser.add_argument("--blocks", type=int, default=39, help="ViT blocks of the random tokenizer (released: 39)")
    parser.add_argument("--num-images", type=int, default=64)
    args = parser.parse_args()
    emulate_three_passes()
    params = None if args.model else random_params(random_config(args.blocks))
    exact, codebook = None, np.zeros(0)
    print("| precision | images | equal codes | equal images | error of the projected vectors | CPU s per image |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in PRECISIONS:
        options: dict[str, Any] = {"precision": Precision(compute=name), "batch_size": min(args.num_images, 4)}
        if args.model:
            tokenizer = ImageTokenizer.load(args.model, **options)
        else:
            tokenizer = ImageTokenizer(random_config(args.blocks), params, **options)
        start = time.process_time()
        vectors = encode(tokenizer, load_images(args, tokenizer.config.image_size))
        seconds = (time.process_time() - start) / len(vectors)
        if exact is None:
            codebook = np.asarray(tokenizer.params["codebook"])
            if not args.model:  # around the vectors, as a trained one is: else one code would be nearest to all
                codebook = vectors.mean((0, 1)) + vectors.std((0, 1)) * codebook
            exact = quantize(vectors, codebook), vectors
        codes = quantize(vectors, codebook)
        equal = codes == exact[0]
        error = np.sqrt(np.square(vectors - exact[1]).mean()) / exact[1].std()
        shares = f"{equal.mean():.3%} | {equal.all(1).mean():.1%}"
        print(f"| {name} | {len(codes)} | {shares} | {error:.1e} | {seconds:.2f} |", flush=True)
        del tokenizer


def encode(tokenizer: ImageTokenizer, inputs: list[Image.Image]) -> np.ndarray:
    """Return the projected vectors, [N, Q, C], that the tokenizer quantizes."""
    model: Any = SeedTokenizer(tokenizer.config, tokenizer.precision)
    program = jax.jit(lambda params, pixels: model.apply({"params": params}, images.normalize(pixels), method="encode"))
    size = tokenizer.batch_size
    groups = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    pixels = [tokenizer.put_batch([tokenizer.pixels(image) for image in group]) for group in groups]
    parts = [np.asarray(program(tokenizer.params, batch).prequant) for batch in pixels]
    return np.concatenate(parts)[: len(inputs)]


def quantize(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return the codes of each image, [N, Q]."""
    return np.stack([np.asarray(vq.squared_distances(row[None], codebook))[0].argmin(-1) for row in vectors])


def load_images(args: argparse.Namespace, size: int) -> list[Image.Image]:
    """Return the images to encode."""
    if args.images:
        paths = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in images.EXTENSIONS)
        return [Image.fromarray(np.asarray(images.load(path).convert("RGB"))) for path in paths[: args.num_images]]
    if args.model:
        scenes: list[Any] = [make_sample("captions", SEED, n, held_out=True).items[0] for n in range(args.num_images)]
        return [Image.fromarray(render(scene, size, np.random.default_rng(n))) for n, scene in enumerate(scenes)]
    noise = [np.random.default_rng(n).integers(0, 256, (16, 16, 3), np.uint8) for n in range(args.num_images)]
    return [Image.fromarray(pixels).resize((size, size)) for pixels in noise]


def random_config(blocks: int) -> SeedTokenizerConfig:
    config = SeedTokenizerConfig.full()
    vit = dataclasses.replace(config.vit, blocks=dataclasses.replace(config.vit.blocks, depth=blocks))
    return dataclasses.replace(config, vit=vit)


def random_params(config: SeedTokenizerConfig) -> Any:
    """Return random parameters that preserve the scale of activations; values repeat after a million."""
    normal = np.random.default_rng(0).standard_normal(1_000_003, np.float32)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name, values = path[-1].key, np.resize(normal, leaf.shape)
        if name == "kernel":
            values *= np.prod(leaf.shape[:-1] if len(leaf.shape) == 4 else leaf.shape[-2:-1]) ** -0.5
        elif name == "scale":
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values = 0.2 * values
        return np.asarray(values, np.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract_params(config))


def emulate_three_passes() -> None:
    """Let the CPU compute matmuls of `bfloat16_3x` as accelerators do: it would compute them exactly."""
    exact = jax.lax.dot_general_p.bind

    def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        return high, jax.lax.reduce_precision(x - high, exponent_bits=8, mantissa_bits=7)

    def bind(*operands: Any, **options: Any) -> Any:
        if options.get("precision") != THREE_PASSES:
            return exact(*operands, **options)
        options["precision"] = (jax.lax.Precision.HIGHEST,) * 2
        (x, x_low), (y, y_low) = map(split, operands)
        return exact(x, y_low, **options) + exact(x_low, y, **options) + exact(x, y, **options)

    jax.lax.dot_general_p.bind = bind


if __name__ == "__main__":
    main()
