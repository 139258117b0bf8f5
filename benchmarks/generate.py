"""Speed of generation, here and with transformers' `generate`: same machine, threads, sizes and numbers.

    python benchmarks/generate.py                      # hidden 1024, 16 layers, vocabulary 40194; a quarter of an hour
    python benchmarks/generate.py --batch 1 8 --formats float32 int8
    python benchmarks/generate.py --tiny               # a few seconds, to see that it runs

Each line is measured in a process of its own. Prefill is a prompt of 128 tokens; decoding is the mean of the tokens
after the first. Bandwidth is the bytes of kernels and of the filled part of the cache, read once a token, over time;
its share is of what adding up a large array reaches on the same device.
"""

import argparse
import json
import os
import subprocess
import sys
import time

OURS, THEIRS = ("float32", "bfloat16", "int8", "int4"), ("torch-float32", "torch-bfloat16")
SIZES = {"vocab": 40194, "hidden": 1024, "wide": 2752, "layers": 16, "heads": 16, "length": 512}
TINY = {"vocab": 830, "hidden": 32, "wide": 48, "layers": 2, "heads": 2, "length": 256}
TOKENS = 34  # of an image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--formats", nargs="+", default=[*OURS[:3], *THEIRS], choices=[*OURS, *THEIRS])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure = with_transformers if args.formats[0].startswith("torch") else with_ours
        print(json.dumps(measure(args, args.formats[0].removeprefix("torch-"), args.batch[0])))
        return
    print("| batch | format | prefill tok/s | first token ms | decode tok/s | ms/step | GB/s | of the device's |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for batch in args.batch:
        for name in args.formats:
            flags = ["--one", "--batch", str(batch), "--formats", name, "--prompt", str(args.prompt)]
            command = [sys.executable, __file__, *flags, *(["--tiny"] if args.tiny else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"| {batch} | {name} | failed: {(done.stderr.strip().splitlines() or ['?'])[-1]} |", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            step = found["step"]
            share = f"{found['bytes'] / step / found['bandwidth']:.0%}" if "bandwidth" in found else ""
            rate = f"{found['bytes'] / step / 1e9:.1f}" if "bytes" in found else ""
            print(
                f"| {batch} | {name} | {batch * args.prompt / found['first']:.0f} | {1e3 * found['first']:.0f} "
                f"| {batch / step:.1f} | {1e3 * step:.1f} | {rate} | {share} |",
                flush=True,
            )


def with_ours(args: argparse.Namespace, name: str, batch: int) -> dict:
    import tempfile
    from pathlib import Path

    import jax
    import jax.numpy as jnp
    import numpy as np

    from seed_jax.data.text.vocabulary import Vocabulary, train_small
    from seed_jax.inference.generation.generator import Generator
    from seed_jax.inference.memory_plan import Workload, cache_size, size_of
    from seed_jax.models.llama.model import Llama, LlamaConfig
    from seed_jax.precision import Precision
    from seed_jax.sharding import unbox

    sizes = TINY if args.tiny else SIZES
    compute = "bfloat16" if name == "bfloat16" or (name != "float32" and jax.default_backend() != "cpu") else "float32"
    config = LlamaConfig(
        sizes["vocab"], sizes["hidden"], sizes["wide"], sizes["layers"], sizes["heads"], sizes["heads"],
        max_length=sizes["length"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        codes = config.vocab_size - 300 - 2
        train_small(["a cat on a mat in a hat", "a dog in the fog on a log"], Path(directory), 300, codes)
        vocabulary = Vocabulary.load(directory)
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = unbox(jax.eval_shape(Llama(config).init, jax.random.key(0), tokens))["params"]
    draws = np.random.default_rng(0).standard_normal(1_000_003, np.float32) * np.float32(0.02)
    params = jax.tree.map(lambda leaf: np.resize(draws, leaf.shape), shapes)
    generator = Generator(
        config, params, vocabulary,
        precision=Precision(compute, compute), quantize=name if name.startswith("int") else None,
    )  # fmt: skip
    del params
    prompts = np.random.default_rng(0).integers(3, 300, (batch, args.prompt)).tolist()

    def run(count: int) -> float:
        begin = time.perf_counter()
        # Exactly so many tokens: an image; one token of text.
        answers = generator.generate(prompts, max_new_tokens=count, mode="image" if count >= TOKENS else "text")
        assert all(len(answer.ids) == count for answer in answers)
        return time.perf_counter() - begin

    first, whole = _best(lambda: run(1)), _best(lambda: run(TOKENS))
    embedding = generator.params["embed_tokens"]["embedding"]
    work = Workload(prompts=batch, prompt_length=args.prompt, new_tokens=TOKENS)
    filled = cache_size(config, generator.precision, work) * (args.prompt + TOKENS / 2) / work.slots(config)
    return {
        "first": first,
        "step": (whole - first) / (TOKENS - 1),
        "bytes": size_of(generator.params) - embedding.nbytes + filled,
        "bandwidth": _bandwidth(),
    }


def _bandwidth() -> float:
    import jax
    import jax.numpy as jnp

    array = jnp.ones((1 << 28,), jnp.float32)
    add = jax.jit(jnp.sum)
    return array.nbytes / _best(lambda: _timed(lambda: add(array).block_until_ready()), 5)


def with_transformers(args: argparse.Namespace, name: str, batch: int) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count())
    sizes = TINY if args.tiny else SIZES
    config = LlamaConfig(
        vocab_size=sizes["vocab"], hidden_size=sizes["hidden"], intermediate_size=sizes["wide"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
        max_position_embeddings=sizes["length"],
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(getattr(torch, name))
    prompts = torch.randint(3, 300, (batch, args.prompt))

    def run(count: int) -> float:
        options = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return _timed(lambda: model.generate(prompts, attention_mask=torch.ones_like(prompts), **options))

    first, whole = _best(lambda: run(1)), _best(lambda: run(TOKENS))
    weights = sum(p.nbytes for p in model.parameters()) - model.model.embed_tokens.weight.nbytes
    return {"first": first, "step": (whole - first) / (TOKENS - 1), "bytes": weights}


def _timed(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _best(call, repeats: int = 3) -> float:
    """Return the least of what `call` returns after a first, warming run."""
    call()
    return min(call() for _ in range(repeats))


if __name__ == "__main__":
    main()
