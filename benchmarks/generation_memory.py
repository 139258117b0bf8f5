"""Compare the memory plan of SEED-LLaMA-8B, image tokenizer and decoder with the compiler's figures.

    python benchmarks/generation_memory.py          # about three minutes on two cores, 3 GiB; no weights are loaded

Programs are compiled for abstract arrays in float32: a CPU's compiler keeps float32 copies of bfloat16 arrays, which
accelerators do not. Prints a Markdown table.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax import images
from seed_jax.inference import memory_plan
from seed_jax.inference.drawing.batch import DrawBatch, draw_batch
from seed_jax.inference.generation.batched_sampling_params import BatchedSamplingParams
from seed_jax.inference.generation.decode_loop import DecodeLoop
from seed_jax.inference.generation.grammar import Grammar
from seed_jax.inference.generation.model_runner import ModelRunner, PromptBatch
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.memory_plan import GIB, Workload
from seed_jax.models.diffusion import Unclip, UnclipConfig, sampler_steps
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig
from seed_jax.precision import Precision

LLAMA, TOKENIZER, DECODER = LlamaConfig.seed_8b(), SeedTokenizerConfig.full(), UnclipConfig.full()
GRAMMAR = Grammar(
    vocab_size=40194, boi=40192, eoi=40193, eos=2, first_code=32000, num_codes=8192, codes_per_image=32,
    forbidden_tokens=(0, 1),
)  # fmt: skip


class NoStopStrings:
    """Compiler of stop strings for requests that have none."""

    def compile(self, stop: Any) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=1536, help="tokens of the prompt (default %(default)s)")
    args = parser.parse_args()
    workload = Workload(prompt_length=args.prompt, new_tokens=512)
    for name, precision in (
        ("as it runs, bfloat16", Precision("bfloat16", "bfloat16")),
        ("as compiled here, float32", Precision()),
    ):
        plan = memory_plan.plan_memory(
            LLAMA, precision, workload, quantize="int8", quantize_vit="int8", tokenizer=TOKENIZER, decoder=DECODER
        )
        print(f"\n{name}:\n  " + "\n  ".join(plan.lines()))
    print("\n| program | plan: weights and cache | compiled: arguments | plan: temporary | compiled: temporary |")
    print("|---|---:|---:|---:|---:|")
    resident, temporary = plan.resident, plan.temporary
    prefill, decode = compile_llama(workload)
    weights = resident["language model"]
    print_row("prefill", weights, temporary["prefill"], prefill)
    print_row("decode", weights + resident["KV cache"], temporary["decode"], decode)
    print_row("encoding an image", resident["image tokenizer"], temporary["encoding images"], compile_encoder())
    print_row("drawing an image", resident["decoder"], temporary["drawing"], compile_drawing())


def print_row(name: str, resident: int, temporary: int, compiled: Any) -> None:
    analysis = compiled.memory_analysis()
    numbers = (resident, analysis.argument_size_in_bytes, temporary, analysis.temp_size_in_bytes)
    print(f"| {name} | " + " | ".join(f"{number / GIB:.2f}" for number in numbers) + " |", flush=True)


def compile_llama(workload: Workload) -> tuple[Any, Any]:
    model = Llama(LLAMA, attention="chunked", scan_layers=False)
    params = memory_plan.llama_weights(LLAMA, Precision(), "int8")
    loop = DecodeLoop(ModelRunner(model), GRAMMAR)
    length = workload.num_slots(LLAMA)
    prompts = PromptBatch(abstract(1, length, dtype=jnp.int32), abstract(1, dtype=jnp.int32))
    sampling = BatchedSamplingParams.stack([SamplingParams()], [workload.new_tokens], NoStopStrings())
    sampling = jax.tree.map(lambda leaf: abstract(*np.shape(leaf), dtype=np.asarray(leaf).dtype), sampling)

    def run_prefill(params: Any, prompts: Any, sampling: Any) -> Any:
        return loop.prefill(params, prompts, sampling, workload.new_tokens)

    prefill = jax.jit(run_prefill).lower(params, prompts, sampling)
    state = jax.tree.map(lambda leaf: abstract(*leaf.shape, dtype=leaf.dtype), prefill.out_info)
    decode = jax.jit(loop.decode, donate_argnums=2).lower(params, sampling, state, abstract(dtype=jnp.int32))
    return prefill.compile(), decode.compile()


def compile_encoder() -> Any:
    model, params = SeedTokenizer(TOKENIZER), memory_plan.tokenizer_weights(TOKENIZER, "int8")
    size = TOKENIZER.image_size

    def encode(params: Any, pixels: Any) -> Any:
        return model.apply({"params": params}, images.normalize(pixels), method="encode").codes

    return jax.jit(encode).lower(params, abstract(1, size, size, 3, dtype=jnp.uint8)).compile()


def compile_drawing() -> Any:
    model, params = Unclip(DECODER), memory_plan.decoder_weights(DECODER, Precision())
    text, width, side = DECODER.text, DECODER.embedding_width, DECODER.unet.sample_size
    text_states = abstract(1, text.max_length, DECODER.unet.text_width)
    embedding = abstract(1, width)
    batch = DrawBatch(
        embeddings=embedding,
        latents=abstract(1, side, side, DECODER.unet.in_channels),
        noise=embedding,
        text_states=text_states,
        negative_text_states=text_states,
        negative_embeddings=None,
        negative_noise=embedding,
    )
    steps = sampler_steps("pndm", DECODER.noise, 20)

    def draw(params: Any, batch: Any, scale: Any, level: Any) -> Any:
        return draw_batch(model, params, batch, steps, scale, level, guided=True)

    return jax.jit(draw).lower(params, batch, abstract(), abstract(dtype=jnp.int32)).compile()


def abstract(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


if __name__ == "__main__":
    main()
