"""Compare the image tokenizer's throughput on a CPU with PyTorch: same weights, images and threads, float32.

    python benchmarks/tokenizer_cpu.py [--threads 2] [--batch 8] [--batches 3] [--rounds 2] [--blocks 39] [--onednn]

Each implementation runs in its own process, alternating, because the load of the machine varies. Every process creates
the same random weights (4.3 GiB) and must produce the same codes. The PyTorch implementation is the released
architecture in eager mode with fused attention (`scaled_dot_product_attention`); with --onednn a third one has its
matrices in oneDNN's packed layout. Images per second are given for the fastest and the median batch; CPU seconds per
image exclude waiting for a busy core.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np

IMPLEMENTATIONS = ("seed_jax", "torch", "torch-onednn")


def main() -> None:
    """Run the implementations alternately and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=3, help="timed batches, after one warm-up batch")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each implementation")
    parser.add_argument("--blocks", type=int, default=39, help="blocks of the ViT")
    parser.add_argument("--onednn", action="store_true", help="also run PyTorch with matrices packed for oneDNN")
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.implementation:
        print(json.dumps(run(args)))
        return
    names = IMPLEMENTATIONS if args.onednn else IMPLEMENTATIONS[:2]
    results = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            results[name].append(start(name, args))
    report(results, args)


def start(name: str, args: argparse.Namespace) -> dict:
    """Run one implementation in a subprocess, pinned to the first cores."""
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    threads = {f"{name}_NUM_THREADS": str(args.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    environment = {**os.environ, **threads, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *sys.argv, "--implementation", name]
    process = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    return json.loads(process.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> dict:
    """Create weights and images, warm up, and time batches."""
    from seed_jax.convert.key_table import expected_shapes
    from seed_jax.convert.tensors import LazyTensor, TensorDict
    from seed_jax.convert.tokenizer.key_table import key_table
    from seed_jax.models.tokenizer.seed_tokenizer import abstract_params

    config = sizes(args.blocks)
    shapes = expected_shapes(key_table(config), abstract_params(config))
    tensors = TensorDict(
        {n: LazyTensor(s, np.dtype(np.float32), weight(i, n, s)) for i, (n, s) in enumerate(shapes.items())}, ""
    )
    pixels = np.random.default_rng(0).integers(0, 256, (args.batch, 224, 224, 3), np.uint8)
    encode = {"seed_jax": make_jax, "torch": make_torch, "torch-onednn": make_onednn}[args.implementation](
        config, tensors, args
    )
    codes, walls, cpus = encode(pixels), [], []
    for _ in range(args.batches):
        wall, cpu = time.perf_counter(), time.process_time()
        encode(pixels)
        walls.append((time.perf_counter() - wall) / args.batch)
        cpus.append((time.process_time() - cpu) / args.batch)
    return {"walls": walls, "cpus": cpus, "codes": codes.tolist()}


def sizes(blocks: int):
    """Return the released config with this many ViT blocks."""
    import dataclasses

    from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig

    full = SeedTokenizerConfig.full()
    return dataclasses.replace(
        full, vit=dataclasses.replace(full.vit, blocks=dataclasses.replace(full.vit.blocks, depth=blocks))
    )


def weight(seed: int, name: str, shape: tuple[int, ...]):
    """Return a function that creates a tensor whose scale keeps activations in range."""
    scale = 0.3 if name.startswith("quantize") else 0.04

    def read() -> np.ndarray:
        values = np.random.default_rng(seed).random(shape, np.float32) - 0.5
        return 1 + 0.1 * values if "norm" in name.lower() and name.endswith("weight") else scale * values

    return read


def make_jax(config, tensors, args):
    """Create our encoder as the command `tokenize` runs it."""
    from seed_jax.checkpoint.lazy import load_on_device
    from seed_jax.convert.key_table import assemble_lazily
    from seed_jax.convert.tokenizer.key_table import key_table
    from seed_jax.inference.image_tokenizer import ImageTokenizer
    from seed_jax.models.tokenizer.seed_tokenizer import abstract_params

    params = load_on_device(assemble_lazily(key_table(config), tensors, abstract_params(config)))
    return ImageTokenizer(config, params, batch_size=args.batch).encode_pixels


def make_torch(config, tensors, args):
    """Create PyTorch's encoder in eager mode."""
    import torch

    from seed_jax.convert.tokenizer.torch_reference import TorchTokenizer

    class Eager(TorchTokenizer):
        def __init__(self):
            super().__init__(config, tensors)
            self._weights = {name: super(Eager, self)._weight(name) for name in tensors}

        def _weight(self, name):
            return self._weights[name]

        def _attend(self, q, k, v, heads, mask=0.0):
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
            mask = mask if isinstance(mask, torch.Tensor) else None
            return self._f.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    torch.set_num_threads(args.threads)
    return encoder(Eager())


def make_onednn(config, tensors, args):
    """Create PyTorch's encoder with matrices in oneDNN's packed layout."""
    import torch

    from seed_jax.convert.tokenizer.torch_reference import TorchTokenizer

    torch.set_num_threads(args.threads)
    encode = make_torch(config, tensors, args)
    model = encode.__closure__[0].cell_contents
    packed = {}

    class Functions:
        def __getattr__(self, name):
            return getattr(torch.nn.functional, name)

        @staticmethod
        def linear(x, matrix, bias=None):
            if id(matrix) not in packed:
                packed[id(matrix)] = matrix.to_mkldnn()
            return torch._C._nn.mkldnn_linear(x.to_mkldnn(), packed[id(matrix)], bias).to_dense()

    assert isinstance(model, TorchTokenizer)
    model._f = Functions()
    return encode


def encoder(model):
    """Wrap a PyTorch tokenizer as a function from pixels to codes."""
    from seed_jax.images import normalize

    def encode(pixels):
        return model.encode(np.asarray(normalize(pixels))).codes

    return encode


def report(results: dict[str, list[dict]], args: argparse.Namespace) -> None:
    """Print images per second, CPU seconds per image, and our speedup over each implementation."""
    print(f"{cpu_name()}, {args.threads} threads, batches of {args.batch}, {args.blocks} blocks, float32")
    ours = summarize(results["seed_jax"])
    for name, runs in results.items():
        best, median, cpu = times = summarize(runs)
        speedups = ", ".join(f"{other / own:.2f}" for own, other in zip(ours, times, strict=True))
        print(
            f"{name:<13} {1 / best:6.3f} images/s best, {1 / median:6.3f} median, {cpu:6.2f} CPU s per image; "
            f"our speedup {speedups}"
        )
    codes = results["seed_jax"][0]["codes"]
    equal = {name: float(np.mean(np.equal(runs[0]["codes"], codes))) for name, runs in results.items()}
    print(f"fraction of codes equal to ours: {equal}")


def summarize(runs: list[dict]) -> tuple[float, float, float]:
    """Return the best and median wall seconds and the least CPU seconds per image."""
    walls = [wall for run in runs for wall in run["walls"]]
    return min(walls), float(np.median(walls)), min(cpu for run in runs for cpu in run["cpus"])


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
