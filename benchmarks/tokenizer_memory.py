"""Measure the image tokenizer's commands at its released size: memory and time on a CPU, and the round trip.

    python benchmarks/tokenizer_memory.py --folder /tmp/tokenizer_memory [--pictures 16] [--report parity.md] [--tiny]

Writes random weights (1.15 billion parameters, 4.3 GiB) as `seed_quantizer.pt` and a 40-block `eva_vit_g.pth`, imports
them, exports them again, compares the files bit by bit, compares codes and embeddings with PyTorch, and tokenises
pictures. Limits: the import's peak is the tensors' size and 1 GiB, that of tokenising 12 GiB. Needs 25 GB of disk and
PyTorch.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from peaks import GIB, apart, seed_jax
from PIL import Image

from seed_jax.convert.key_table import expected_shapes
from seed_jax.convert.safetensors_writer import write_safetensors
from seed_jax.convert.tensors import open_tensors, write_torch
from seed_jax.convert.tokenizer.key_table import VIT, buffers, key_table
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params

CODEBOOK_SCALE = 0.3  # about that of what is quantised, so that many codes are used


def main() -> int:
    """Run the steps and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--report", type=Path, help="keep the export's parity report here")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        return run(args)
    finally:
        shutil.rmtree(args.folder)


def run(args: argparse.Namespace) -> int:
    """Generate, import, export, compare, tokenise."""
    files, model, out, pictures = (args.folder / name for name in ("files", "model", "out", "pictures"))
    size = apart(generate, files, args.tiny)
    print(f"{size / GIB:.2f} GiB of tensors in float32")
    heads = ["--vit-heads", 4, "--qformer-heads", 4, "--decoder-heads", 4] if args.tiny else []
    quantizer, vit = files / "seed_quantizer.pt", files / "eva_vit_g.pth"
    imported = seed_jax("import", "tokenizer", "--quantizer", quantizer, "--vit", vit, "--out", model, *heads)
    print(imported.line("import tokenizer", size + GIB))
    print(seed_jax("export", "tokenizer", "--model", model, "--out", out, "--vit-beside").line("export tokenizer"))
    equal = all(apart(same, files / name, out / name) for name in ("seed_quantizer.pt", "eva_vit_g.pth"))
    print(f"the export is {'bit by bit the' if equal else 'NOT the'} original")
    shutil.rmtree(out)
    verified = ["--model", model, "--out", out, "--format", "safetensors", "--verify"]
    print(seed_jax("export", "tokenizer", *verified).line("export tokenizer --verify"))
    if args.report:
        shutil.copyfile(out / "parity.md", args.report)
    apart(draw, pictures, args.pictures)
    codes = args.folder / "codes.jsonl"
    tokenized = seed_jax("tokenize", "--model", model, pictures, "--out", codes)
    print(tokenized.line(f"tokenize {args.pictures} pictures", 12 * GIB))
    return 0 if equal and imported.peak <= size + GIB and tokenized.peak <= 12 * GIB else 1


def generate(directory: Path, tiny: bool) -> int:
    """Write random official files, a tensor at a time, and return the size of the needed tensors."""
    directory.mkdir()
    rng, config = np.random.default_rng(0), SeedTokenizerConfig.tiny() if tiny else SeedTokenizerConfig.full()
    shapes = expected_shapes(key_table(config), abstract_params(config))
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    positions = buffers(config)
    depth = config.vit.blocks.depth
    spare = {} if tiny else {n.replace(".0.", f".{depth}."): s for n, s in shapes.items() if f"{VIT}blocks.0." in n}

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name in positions:
            return positions[name]
        values = rng.standard_normal(shape, np.float32)
        if "norm" in name.lower() and name.endswith("weight"):
            return 1 + 0.1 * values
        return (CODEBOOK_SCALE if name.startswith("quantize") else 0.02) * values

    quantizer = {name: shape for name, shape in shapes.items() if not name.startswith(VIT)}
    quantizer |= {name: array.shape for name, array in positions.items()}
    encoder = {name.removeprefix(VIT): shape for name, shape in (shapes | spare).items() if name.startswith(VIT)}
    for file, part in (("seed_quantizer.pt", quantizer), ("eva_vit_g.pth", encoder)):
        path = directory / "tensors.safetensors"
        dtypes = {name: np.dtype(np.int64 if name in positions else np.float32) for name in part}
        write_safetensors(path, part, dtypes, ((name, read(name, shape)) for name, shape in part.items()))
        write_torch(directory / file, path)
        path.unlink()
    return size


def same(before: Path, after: Path) -> bool:
    """Compare two files; the first may have a block more, which SEED does not use."""
    first, second = open_tensors(before), open_tensors(after)
    spare = [name for name in first if name.startswith("blocks.39.")]
    return second.keys() == first.keys() - set(spare) and all(
        np.array_equal(first[name].read(), tensor.read()) for name, tensor in second.items()
    )


def draw(directory: Path, count: int) -> None:
    """Write pictures of noise at several scales."""
    directory.mkdir()
    rng = np.random.default_rng(1)
    for index in range(count):
        side = int(2 ** (1 + index % 7))
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(directory / f"{index:03d}.png")


if __name__ == "__main__":
    sys.exit(main())
