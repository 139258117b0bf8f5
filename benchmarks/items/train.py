"""Training steps of a LLaMA, LoRA and full: the program of `seed_jax.train` beside transformers and PyTorch.

AdamW with clipping; random tokens, one segment per row. On a GPU the sizes are those of SEED-LLaMA-8B; full training
has a quarter of its layers, so that float32 moments fit one device, and its figures are for that model. `--case saving`
times steps while a checkpoint is written.
"""

import statistics
import sys
import tempfile
import time

from benchmarks.items import common

SIZES = {  # hidden, intermediate, layers, heads, vocabulary; batch size, sequence length
    "tiny": (32, 48, 2, 2, 830, 2, 32),
    "cpu": (1024, 2816, 16, 16, 32128, 2, 256),
    "gpu": (4096, 11008, 32, 32, 40194, 8, 2048),
}
FULL_LAYERS = {"tiny": 2, "cpu": 16, "gpu": 8}
STEPS = 5


def main() -> None:
    args = common.parse_args(__doc__, cases=("lora", "full", "saving"))
    if args.case == "saving" and args.side == "torch":
        sys.exit("--case saving measures the checkpoints of seed_jax: leave --side out.")
    layers = {"lora": SIZES[args.scale][2], "full": FULL_LAYERS[args.scale], "saving": FULL_LAYERS[args.scale]}
    selected = (args.case,) if args.case else ("lora", "full")
    cases = {f"{trained}, {layers[trained]} layers": trained for trained in selected}
    for case, trained in common.before(args.deadline, cases, "tokens/s"):
        (with_jax if args.side == "seed_jax" else with_torch)(args, case, trained, layers[trained])


def with_jax(args, case: str, trained: str, layers: int) -> None:
    import flax.linen as nn
    import jax
    import numpy as np

    from seed_jax import accelerators, sharding
    from seed_jax.checkpoint.store import Store
    from seed_jax.models.llama.model import Llama, LlamaConfig
    from seed_jax.precision import Precision
    from seed_jax.train import auto_settings, flops
    from seed_jax.train.compiled_step import make_program
    from seed_jax.train.config import load_config
    from seed_jax.train.stages.registry import make_stage, parse_config
    from seed_jax.train.state import create, merge

    hidden, intermediate, _, heads, vocabulary, batch_size, length = SIZES[args.scale]
    on_cpu = jax.default_backend() == "cpu"
    sizes = LlamaConfig(vocabulary, hidden, intermediate, layers, heads, heads, max_length=length)
    options = load_config("pretrain:8b" if trained == "lora" else "pretrain_full:8b")
    options.model.update(init="")
    options.precision.compute = "float32" if on_cpu else "bfloat16"
    options.precision.frozen = "float32" if on_cpu else "bfloat16"
    if on_cpu:
        options.model.update(remat="none", attention="xla")
    options.data.update(batch_size=batch_size, sequence_length=length)
    mesh = sharding.make_mesh({"fsdp": -1}, jax.devices()[:1])
    config = auto_settings.resolve(parse_config(options), mesh, accelerators.for_device(mesh.devices.flat[0]))
    stage = make_stage(config)
    remat, attention = config.model.remat, config.model.attention
    stage.model = Llama(sizes, Precision("float32", options.precision.compute), remat=remat, attention=attention)
    start = time.perf_counter()
    program = make_program(config, stage, mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_AXIS_RULES):
        state, frozen = create(stage, program.optimizer, program.abstract, jax.random.key(0))
        step = program.compile()
        compile_s = time.perf_counter() - start
        tokens = np.random.default_rng(0).integers(0, vocabulary, (batch_size, length + 1)).astype(np.int32)
        batch = sharding.shard_batch(
            {
                "tokens": tokens[:, :-1],
                "targets": tokens[:, 1:],
                "segment_ids": np.ones((batch_size, length), np.int32),
                "positions": np.tile(np.arange(length, dtype=np.int32), (batch_size, 1)),
                "loss_mask": np.ones((batch_size, length), np.float32),
            },
            sharding.batch_sharding(mesh),
            batch_size,
        )

        def run_steps(count: int) -> list[float]:
            nonlocal state
            times = []
            for _ in range(count):
                start = time.perf_counter()
                state, metrics = step(state, frozen, batch)
                float(metrics["loss"])
                times.append(time.perf_counter() - start)
            return times

        times = run_steps(STEPS + 1)
        if trained == "saving":
            with tempfile.TemporaryDirectory() as directory:
                store = Store(directory, keep_last=1)
                start = time.perf_counter()
                store.save(1, params=merge(state.trained, frozen), optimizer=state.optimizer, data={}, meta={})
                common.report("a checkpoint blocks the step", time.perf_counter() - start, "s")
                slowed = statistics.median(run_steps(STEPS)) / statistics.median(times[1:])
                common.report("steps while it is written, times as long", slowed, "")
                store.close()
            return
    median = statistics.median(times[1:])
    peak = flops.device_peak(mesh.devices.flat[0])
    details = {"parameters": _count(program.abstract), "s_per_step": median, "compile_s": round(compile_s, 1)}
    if peak:
        details["mfu"] = stage.flops_per_unit() * batch_size * length / median / peak
    details |= {"remat": remat, "attention": attention, "layers": layers}
    common.report(case, batch_size * length / median, "tokens/s", **details)


def with_torch(args, case: str, trained: str, layers: int) -> None:
    import torch
    import transformers

    device = common.torch_device(args.threads)
    hidden, intermediate, _, heads, vocabulary, batch_size, length = SIZES[args.scale]
    on_gpu = device.type == "cuda"
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=length, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config)
    if trained == "lora":
        import peft

        model = model.to(torch.bfloat16 if on_gpu else torch.float32)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lora = peft.LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets, modules_to_save=["embed_tokens", "lm_head"]
        )
        model = peft.get_peft_model(model, lora)
    if on_gpu:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    tokens = torch.randint(0, vocabulary, (batch_size, length), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    times = common.measure(step, STEPS)
    common.report(
        case, batch_size * length / times["median"], "tokens/s",
        parameters=sum(p.numel() for p in model.parameters()), s_per_step=times["median"], layers=layers,
    )  # fmt: skip


def _count(abstract) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves((abstract.state.trained, abstract.frozen)))


if __name__ == "__main__":
    main()
