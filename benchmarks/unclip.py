"""Measure time and memory of drawing at the released size with random weights, and compare the UNet with PyTorch.

    python benchmarks/unclip.py             # both parts, on the CPU: about ten minutes on two cores, 12 GiB
    python benchmarks/unclip.py step        # one guided UNet step, here and in PyTorch, same weights and threads
    python benchmarks/unclip.py image       # one 768-pixel image with 20 PNDM steps
    python benchmarks/unclip.py --tiny      # a few seconds, to check that the script runs

Each part runs in its own process, so that its peak memory is measured alone.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

PARTS = ("step", "image")
TIMESTEP = 501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: both")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--steps", type=int, default=20, help="of the image's sampler (default %(default)s)")
    parser.add_argument("--sampler", default="pndm", choices=("pndm", "ddim", "dpmpp"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the image's UNet")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps; the fastest counts (default %(default)s)")
    args = parser.parse_args()
    if args.part is None:
        for part in PARTS:
            subprocess.run([sys.executable, __file__, part, *sys.argv[1:]], check=True)
        return
    result = {"part": args.part, "cores": os.cpu_count(), **(step if args.part == "step" else draw_image)(args)}
    result["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps(result, indent=1))


def step(args: argparse.Namespace) -> dict:
    """Time one guided step (batch size 2) with the same weights in PyTorch and here, and compare the outputs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from seed_jax.convert.diffusion.diffusers_import import abstract_params, key_table
    from seed_jax.convert.key_table import assemble
    from seed_jax.convert.tensors import LazyTensor, TensorDict
    from seed_jax.models.diffusion import Unclip, UnclipCondition

    config = _config(args)
    rng, c = np.random.default_rng(0), config.unet
    latents, text, labels = (
        rng.standard_normal(shape, np.float32)
        for shape in [(2, c.sample_size, c.sample_size, 4), (2, 77, c.text_width), (2, c.class_width)]
    )
    expected, torch_times, state = _pytorch_step(config, args.repeats, latents, text, labels)

    abstract = abstract_params(config)["unet"]
    # Popped as they are read, so that the weights are in memory little more than once.
    float32 = np.dtype(np.float32)
    tensors = {n: LazyTensor(tuple(v.shape), float32, lambda n=n: state.pop(n).numpy()) for n, v in state.items()}
    params = jax.tree.map(jnp.asarray, assemble(key_table("unet", abstract), TensorDict(tensors, "PyTorch"), abstract))
    unclip, condition = Unclip(config), UnclipCondition(jnp.asarray(text), jnp.asarray(labels))
    denoise = jax.jit(lambda p, x: unclip.denoise({"unet": p}, x, jnp.full((2,), TIMESTEP), condition))
    output, times = _timed(lambda: np.asarray(denoise(params, latents)), args.repeats)
    return {
        "batch_size": 2,
        "pytorch_seconds": torch_times[0],
        "seconds": times[0],
        "pytorch_processor_seconds": torch_times[1],
        "processor_seconds": times[1],
        "greatest_difference": float(np.abs(output - expected).max()),
        "largest_value": float(np.abs(expected).max()),
    }


def _pytorch_step(config, repeats: int, latents, text, labels):
    """Return the output, the time and the weights of PyTorch diffusers' UNet."""
    import torch
    from diffusers import UNet2DConditionModel

    from seed_jax.convert.diffusion.diffusers_export import folder_files

    torch.set_num_threads(os.cpu_count())
    network = UNet2DConditionModel.from_config(folder_files(config)["unet/config.json"]).eval()
    x = torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous()
    text, labels = torch.from_numpy(text), torch.from_numpy(labels)
    with torch.inference_mode():
        y, seconds = _timed(lambda: network(x, TIMESTEP, text, class_labels=labels).sample, repeats)
    return (
        y.permute(0, 2, 3, 1).numpy(),
        seconds,
        {name: value.detach() for name, value in network.state_dict().items()},
    )


def draw_image(args: argparse.Namespace) -> dict:
    """Draw one image from a random embedding with random weights."""
    import jax
    import numpy as np
    from flax.core import meta

    from seed_jax.inference.drawing.drawer import Drawer
    from seed_jax.inference.drawing.request import DrawOptions
    from seed_jax.models.diffusion import Unclip
    from seed_jax.precision import Precision

    config, began = _config(args), time.perf_counter()
    stored = Precision(args.dtype, args.dtype)
    drawer = Drawer(config, meta.unbox(Unclip(config, stored).init(jax.random.key(0))), dtype=args.dtype)
    ready = time.perf_counter()
    embedding = np.random.default_rng(0).standard_normal((1, config.embedding_width), np.float32)
    drawn = drawer.draw(embedding, [0], DrawOptions(args.sampler, args.steps), progress=True)
    return {
        "sampler": args.sampler,
        "steps": args.steps,
        "dtype": args.dtype,
        "pixels": drawn.shape[1],
        "start_seconds": round(ready - began, 1),
        "image_seconds": round(time.perf_counter() - ready, 1),
    }


def _config(args: argparse.Namespace):
    from seed_jax.models.diffusion import UnclipConfig

    return UnclipConfig.tiny() if args.tiny else UnclipConfig.full()


def _timed(call, repeats: int):
    """Return the result of `call` and its least wall and processor times after a warm-up run.

    On a shared machine, processor time is the more reliable of the two.
    """
    result, times = call(), []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return result, [round(min(column), 3) for column in zip(*times, strict=True)]


if __name__ == "__main__":
    main()
