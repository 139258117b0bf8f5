"""A training step of a 0.3B LLaMA on this machine, beside transformers and PyTorch: same shapes, threads and batch.

    python benchmarks/train_step.py            # both sides, each in a process of its own
    python benchmarks/train_step.py --saving   # how much slower steps are while a checkpoint is written

AdamW, float32 on a CPU and bfloat16 compute on an accelerator; random tokens, one segment a row, everything trained.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_layers": 16, "num_heads": 16, "vocab_size": 32128}


def ours(args: argparse.Namespace) -> dict:
    """Time the very step of `seed_jax.train`."""
    import flax.linen as nn
    import jax
    import numpy as np

    from seed_jax import accelerators, sharding
    from seed_jax.checkpoint.store import Store
    from seed_jax.models.llama.model import Llama, LlamaConfig
    from seed_jax.precision import Precision
    from seed_jax.train import auto_settings
    from seed_jax.train.compiled_step import make_program
    from seed_jax.train.config import load_config
    from seed_jax.train.stages.registry import make_stage, parse_config
    from seed_jax.train.state import create, merge

    on_cpu = jax.default_backend() == "cpu"
    sizes = LlamaConfig(num_kv_heads=SIZES["num_heads"], **SIZES)
    options = load_config("pretrain_full:8b")
    # The embedding table trains too, as on the other side.
    options.model.update(init="", train="all", remat="none", attention="xla" if on_cpu else "auto")
    options.precision.compute = "float32" if on_cpu else "bfloat16"
    options.data.update(batch_size=args.rows, sequence_length=args.length)
    options.optimizer.accumulation = 1
    mesh = sharding.make_mesh({"fsdp": -1})
    config = auto_settings.resolve(parse_config(options), mesh, accelerators.for_device(mesh.devices.flat[0]))
    stage = make_stage(config)
    precision = Precision("float32", config.precision.compute)
    stage.model = Llama(sizes, precision, remat="none", attention=config.model.attention)
    program = make_program(config, stage, mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES):
        state, frozen = create(stage, program.optimizer, program.abstract, jax.random.key(0))
        step = program.compile()
        tokens = np.random.default_rng(0).integers(0, sizes.vocab_size, (args.rows, args.length + 1)).astype(np.int32)
        rows = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segment_ids": np.ones_like(tokens[:, 1:]),
            "positions": np.tile(np.arange(args.length, dtype=np.int32), (args.rows, 1)),
            "loss_mask": np.ones((args.rows, args.length), np.float32),
        }
        batch = sharding.shard_batch(rows, sharding.batch_sharding(mesh), args.rows)
        times, saving_times, blocked = [], [], 0.0
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder, keep_last=1)
            for number in range(args.steps + 1 + args.saving * args.steps):
                start = time.perf_counter()
                state, metrics = step(state, frozen, batch)
                loss = float(metrics["loss"])
                (times if number <= args.steps else saving_times).append(time.perf_counter() - start)
                if args.saving and number == args.steps:
                    start = time.perf_counter()
                    params = merge(state.trained, frozen)
                    store.save(number, params=params, optimizer=state.optimizer, data={}, meta={})
                    blocked = time.perf_counter() - start
            store.close()
    kernels = jax.tree.leaves(program.abstract.state.trained)
    found = {"parameters": sum(leaf.size for leaf in kernels), "seconds": statistics.median(times[1:]), "loss": loss}
    if args.saving:
        found |= {"blocked": blocked, "seconds_while_saving": statistics.median(saving_times)}
    return found


def theirs(args: argparse.Namespace) -> dict:
    """Time transformers' LLaMA with PyTorch's AdamW."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    config = transformers.LlamaConfig(
        vocab_size=SIZES["vocab_size"],
        hidden_size=SIZES["hidden_size"],
        intermediate_size=SIZES["intermediate_size"],
        num_hidden_layers=SIZES["num_layers"],
        num_attention_heads=SIZES["num_heads"],
        max_position_embeddings=args.length,
    )
    model = transformers.LlamaForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens = torch.randint(0, SIZES["vocab_size"], (args.rows, args.length), device=device)
    times = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append(time.perf_counter() - start)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "seconds": statistics.median(times[1:]), "loss": float(loss)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="timed ones; one more goes before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--saving", action="store_true")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[args.side](args)))
        return
    found = {}
    for side in ("ours",) if args.saving else ("ours", "theirs"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found[side] = json.loads(done.stdout.splitlines()[-1])
        rate = args.rows * args.length / found[side]["seconds"]
        print(
            f"{side:6} {found[side]['parameters']:,} parameters {found[side]['seconds']:.3f} s a step "
            f"{rate:.1f} tokens/s"
        )
    if args.saving:
        one = found["ours"]
        share = one["seconds_while_saving"] / one["seconds"]
        print(f"a save holds the step up for {one['blocked']:.2f} s; steps while it is written: {share:.3f} x as long")
    else:
        print(f"ours is {found['theirs']['seconds'] / found['ours']['seconds']:.2f} x as fast")


if __name__ == "__main__":
    main()
