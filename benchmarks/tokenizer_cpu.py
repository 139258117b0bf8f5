"""Compare the image tokenizer's speed on a CPU with PyTorch: same weights, same pictures, same threads, float32.

    python benchmarks/tokenizer_cpu.py [--threads 2] [--batch 8] [--batches 3] [--rounds 2] [--blocks 39] [--onednn]

Each side runs in a process of its own, in turns, because other load comes and goes; every process makes the same random
weights (4.3 GiB) and must find the same codes. The PyTorch side is the released architecture in eager mode with fused
attention (`scaled_dot_product_attention`); with --onednn a third side has its matrices in oneDNN's packed layout.
Pictures a second are of the fastest and of the middle batch; CPU seconds a picture leave out waiting for a busy core.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np

SIDES = ("seed_jax", "torch", "torch-onednn")


def main() -> None:
    """Run the sides in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--blocks", type=int, default=39, help="of the image encoder")
    parser.add_argument("--onednn", action="store_true", help="also PyTorch with its matrices packed for oneDNN")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_side(args)))
        return
    sides = SIDES if args.onednn else SIDES[:2]
    results = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            results[side].append(start_side(side, args))
    report(results, args)


def start_side(side: str, args: argparse.Namespace) -> dict:
    """Run one side on the first cores."""
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    threads = {f"{name}_NUM_THREADS": str(args.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    environment = {**os.environ, **threads, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *sys.argv, "--side", side]
    process = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    return json.loads(process.stdout.splitlines()[-1])


def run_side(args: argparse.Namespace) -> dict:
    """Make weights and pictures, warm up, and time batches."""
    from seed_jax.convert.key_table import expected_shapes
    from seed_jax.convert.tensors import Tensor, Tensors
    from seed_jax.convert.tokenizer.key_table import key_table
    from seed_jax.models.tokenizer.seed_tokenizer import abstract_params

    config = sizes(args.blocks)
    shapes = expected_shapes(key_table(config), abstract_params(config))
    tensors = Tensors(
        {n: Tensor(s, np.dtype(np.float32), weight(i, n, s)) for i, (n, s) in enumerate(shapes.items())}, ""
    )
    pixels = np.random.default_rng(0).integers(0, 256, (args.batch, 224, 224, 3), np.uint8)
    encode = {"seed_jax": make_jax, "torch": make_torch, "torch-onednn": make_onednn}[args.side](config, tensors, args)
    codes, walls, cpus = encode(pixels), [], []
    for _ in range(args.batches):
        wall, cpu = time.perf_counter(), time.process_time()
        encode(pixels)
        walls.append((time.perf_counter() - wall) / args.batch)
        cpus.append((time.process_time() - cpu) / args.batch)
    return {"walls": walls, "cpus": cpus, "codes": codes.tolist()}


def sizes(blocks: int):
    """Return the released sizes with some blocks fewer."""
    import dataclasses

    from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig

    full = SeedTokenizerConfig.full()
    return dataclasses.replace(
        full, vit=dataclasses.replace(full.vit, blocks=dataclasses.replace(full.vit.blocks, depth=blocks))
    )


def weight(seed: int, name: str, shape: tuple[int, ...]):
    """Return a function that makes a tensor whose values keep signals in range."""
    scale = 0.3 if name.startswith("quantize") else 0.04

    def read() -> np.ndarray:
        values = np.random.default_rng(seed).random(shape, np.float32) - 0.5
        return 1 + 0.1 * values if "norm" in name.lower() and name.endswith("weight") else scale * values

    return read


def make_jax(config, tensors, args):
    """Return our encoder as the command `tokenize` runs it."""
    from seed_jax.checkpoint.lazy import on_device
    from seed_jax.convert.key_table import assemble_lazily
    from seed_jax.convert.tokenizer.key_table import key_table
    from seed_jax.inference.image_tokenizer import ImageTokenizer
    from seed_jax.models.tokenizer.seed_tokenizer import abstract_params

    params = on_device(assemble_lazily(key_table(config), tensors, abstract_params(config)))
    return ImageTokenizer(config, params, batch_size=args.batch).encode_pixels


def make_torch(config, tensors, args):
    """Return PyTorch's encoder in eager mode."""
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
    """Return PyTorch's encoder with its matrices in the layout that oneDNN multiplies fastest."""
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
    """Return pixels -> codes."""
    from seed_jax.images import normalize

    def encode(pixels):
        return model.encode(np.asarray(normalize(pixels))).codes

    return encode


def report(results: dict[str, list[dict]], args: argparse.Namespace) -> None:
    """Print pictures a second, CPU seconds a picture, and how we compare."""
    print(f"{cpu_name()}, {args.threads} threads, batches of {args.batch}, {args.blocks} blocks, float32")
    ours = summary(results["seed_jax"])
    for side, runs in results.items():
        best, middle, cpu = found = summary(runs)
        ratios = ", ".join(f"{b / o:.2f}" for o, b in zip(ours, found, strict=True))
        print(
            f"{side:<13} {1 / best:6.3f} pictures/s best, {1 / middle:6.3f} median, {cpu:6.2f} CPU s a picture; "
            f"ours is quicker by {ratios}"
        )
    first = results["seed_jax"][0]["codes"]
    equal = {side: float(np.mean(np.equal(runs[0]["codes"], first))) for side, runs in results.items()}
    print(f"codes equal to ours: {equal}")


def summary(runs: list[dict]) -> tuple[float, float, float]:
    """Return best and median wall seconds, and the least CPU seconds, a picture."""
    walls = [wall for run in runs for wall in run["walls"]]
    return min(walls), float(np.median(walls)), min(cpu for run in runs for cpu in run["cpus"])


def cpu_name() -> str:
    """Return what the kernel calls the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
