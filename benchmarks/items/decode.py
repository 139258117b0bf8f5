"""Generation by a LLaMA: prefill, decode steps, and seconds per image of 34 tokens, beside transformers.

Memory bandwidth utilization: bytes of the kernels and of the filled part of the KV cache, read once per step, over the
step's time and the bandwidth that `ceilings.py` measures (`run.py` divides them). Prompts of 128 tokens; transformers
decodes greedily with a static cache, on a GPU compiled.
"""

import functools

from benchmarks.items import common

SIZES = {  # vocabulary, hidden, intermediate, layers, heads
    "tiny": (830, 32, 48, 2, 2),
    "cpu": (40194, 1024, 2752, 16, 16),
    "gpu": (40194, 4096, 11008, 32, 32),
}
CASES = {
    "tiny": (("float32", 1), ("int8", 2)),
    "cpu": (("float32", 1), ("float32", 8), ("bfloat16", 1), ("int8", 1)),
    "gpu": (("bfloat16", 1), ("int8", 1), ("bfloat16", 8), ("bfloat16", 32), ("int8", 32)),
}
PROMPT, IMAGE = 128, 34
TINY_PROMPT, MAX_LENGTH = 16, 512


def main() -> None:
    args = common.parse_args(__doc__)
    is_torch = args.side == "torch"
    run = (make_torch if is_torch else make_jax)(args)
    cases = {
        f"{dtype}, batch {batch}": (dtype, batch)
        for dtype, batch in CASES[args.scale]
        if not (is_torch and dtype == "int8")
    }
    for case, (dtype, batch) in common.before(args.deadline, cases, "tokens/s"):
        run(dtype, batch, case)


def _report(case: str, batch: int, prompt: int, first: dict, whole: dict, size: float) -> None:
    step = (whole["median"] - first["median"]) / (IMAGE - 1)
    common.report(
        case, batch / step, "tokens/s", ms_per_step=1e3 * step, s_per_image=whole["median"] / batch,
        first_token_ms=1e3 * first["median"], prefill_tokens_per_s=batch * prompt / first["median"],
        gb_per_s=size / step / 1e9, compile_s=round(first["first"] + whole["first"], 1),
    )  # fmt: skip


def make_jax(args):
    import tempfile
    from pathlib import Path

    import jax
    import numpy as np

    from seed_jax.data.text.vocabulary import Vocabulary, train_small
    from seed_jax.inference import weight_loading
    from seed_jax.inference.generation.generator import Generator
    from seed_jax.inference.memory_plan import Workload, kv_cache_bytes, tree_bytes
    from seed_jax.models.llama.model import Llama, LlamaConfig
    from seed_jax.precision import Precision
    from seed_jax.sharding import unbox

    class RandomGenerator(Generator):
        """Makes its weights on the device in the form that loading would give them."""

        def _load_params(self, params, quantize, mesh):
            dtype_of = weight_loading.matrix_dtype(self.precision.compute_dtype)
            scheme_of = weight_loading.llama_schemes(quantize)
            shapes = unbox(self._abstract_params(scan_layers=False))
            return common.random_tree(weight_loading.abstract(shapes, dtype_of, scheme_of))

    vocab, hidden, wide, layers, heads = SIZES[args.scale]
    config = LlamaConfig(vocab, hidden, wide, layers, heads, heads, max_length=MAX_LENGTH)
    with tempfile.TemporaryDirectory() as directory:
        train_small(["a cat on a mat in a hat", "a dog in the fog on a log"], Path(directory), 300, vocab - 302)
        vocabulary = Vocabulary.load(directory)
    shapes = unbox(jax.eval_shape(Llama(config).init, jax.random.key(0), np.zeros((1, 2), np.int32)))["params"]
    length = TINY_PROMPT if args.scale == "tiny" else PROMPT
    on_cpu = jax.default_backend() == "cpu"

    @functools.cache
    def make_generator(dtype: str) -> Generator:
        quantize = dtype if dtype.startswith("int") else None
        compute = dtype if quantize is None else ("float32" if on_cpu else "bfloat16")
        precision = Precision(compute, compute)
        return RandomGenerator(config, shapes, vocabulary, precision=precision, quantize=quantize)

    def run(dtype: str, batch: int, case: str) -> None:
        generator = make_generator(dtype)
        prompts = np.random.default_rng(0).integers(3, 300, (batch, length)).tolist()

        def generate(count: int, mode: str) -> None:
            answers = generator.generate(prompts, max_new_tokens=count, mode=mode)
            if any(len(answer.ids) != count for answer in answers):
                raise AssertionError(f"expected answers of {count} tokens")

        first = common.measure(lambda: generate(1, "text"), 3)
        whole = common.measure(lambda: generate(IMAGE, "image"), 3)
        work = Workload(prompts=batch, prompt_length=length, new_tokens=IMAGE)
        filled = kv_cache_bytes(config, generator.precision, work) * (length + IMAGE / 2) / work.num_slots(config)
        size = tree_bytes(generator.params) - generator.params["embed_tokens"]["embedding"].nbytes + filled
        _report(case, batch, length, first, whole, size)

    return run


def make_torch(args):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device = common.torch_device(args.threads)
    vocab, hidden, wide, layers, heads = SIZES[args.scale]
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=MAX_LENGTH,
    )  # fmt: skip
    length = TINY_PROMPT if args.scale == "tiny" else PROMPT

    def run(dtype: str, batch: int, case: str) -> None:
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        prompts = torch.randint(3, 300, (batch, length), device=device)
        options = {"cache_implementation": "static"} if device.type == "cuda" else {}

        def generate(count: int) -> None:
            model.generate(
                prompts, attention_mask=torch.ones_like(prompts), min_new_tokens=count, max_new_tokens=count,
                do_sample=False, pad_token_id=0, **options,
            )  # fmt: skip

        first = common.measure(common.torch_timed(lambda: generate(1)), 3)
        whole = common.measure(common.torch_timed(lambda: generate(IMAGE)), 3, warmup=2)
        size = sum(p.nbytes for p in model.parameters()) - model.model.embed_tokens.weight.nbytes
        _report(case, batch, length, first, whole, size)

    return run


if __name__ == "__main__":
    main()
