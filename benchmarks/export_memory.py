"""Measure the peak memory of importing and exporting a language model, which is far below the model's size.

    python benchmarks/export_memory.py --folder /tmp/export_memory [--hidden 2048 --layers 20] [--dtype float32]

Writes a random LLaMA (1.2 billion parameters by default) as Hugging Face shards, imports it, exports it again and
compares the files. The export may take the largest shard plus 2 GiB, whatever the size of the model. Needs disk space
for three copies.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from peaks import GIB, apart, seed_jax

from seed_jax.convert.key_table import expected_shapes
from seed_jax.convert.llama.hf_export import hf_config
from seed_jax.convert.llama.key_table import abstract_params, key_table
from seed_jax.convert.sharded_writer import write_weights
from seed_jax.convert.tensors import LazyTensor, TensorDict, open_tensors
from seed_jax.files import write_json
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.precision import as_dtype
from seed_jax.sizes import parse_size


def main() -> int:
    """Run the steps and print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--max-shard-size", default="1GB")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        return run(args)
    finally:
        shutil.rmtree(args.folder)


def run(args: argparse.Namespace) -> int:
    """Generate, import, export and compare; return the exit code."""
    heads = args.hidden // 128
    config = LlamaConfig(40194, args.hidden, args.hidden * 43 // 16, args.layers, heads, heads)
    source, model, out = (args.folder / name for name in ("hf", "model", "out"))
    size = apart(generate, source, config, args.dtype, args.max_shard_size)
    print(f"{size / GIB:.2f} GiB of tensors in {args.dtype}, shards of at most {args.max_shard_size}")
    print(seed_jax("import", "llama", "--from", source, "--out", model).line("import llama"))
    exported = seed_jax("export", "llama", "--model", model, "--out", out, "--max-shard-size", args.max_shard_size)
    limit = max(path.stat().st_size for path in out.glob("*.safetensors")) + 2 * GIB
    print(exported.line("export llama", limit))
    equal = apart(same, source, out)
    print(f"the exported files are {'bitwise equal to' if equal else 'DIFFERENT from'} the original")
    return 0 if equal and exported.peak <= limit else 1


def generate(directory: Path, config: LlamaConfig, dtype_name: str, max_shard_size: str) -> int:
    """Write a random model tensor by tensor; return the bytes of its tensors."""
    directory.mkdir()
    rng, dtype = np.random.default_rng(0), as_dtype(dtype_name)
    shapes = expected_shapes(key_table(config), abstract_params(config))

    def tensor(shape: tuple[int, ...]) -> LazyTensor:
        return LazyTensor(shape, np.dtype(np.float32), lambda: 0.02 * rng.standard_normal(shape, np.float32))

    tensors = TensorDict({name: tensor(shape) for name, shape in shapes.items()}, "random numbers")
    write_weights(directory, tensors, dtype, parse_size(max_shard_size))
    write_json(directory / "config.json", hf_config(config, dtype))
    return sum(int(np.prod(shape)) for shape in shapes.values()) * dtype.itemsize


def same(before: Path, after: Path) -> bool:
    """Compare two folders of safetensors tensor by tensor."""
    first, second = (open_tensors(sorted(folder.glob("*.safetensors"))) for folder in (before, after))
    return first.keys() == second.keys() and all(
        np.array_equal(tensor.read().view(np.uint8), second[name].read().view(np.uint8))
        for name, tensor in first.items()
    )


if __name__ == "__main__":
    sys.exit(main())
