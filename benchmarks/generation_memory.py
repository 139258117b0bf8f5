"""The memory plan of SEED-LLaMA-8B with tokenizer and decoder, beside what the compiler says of the real programs.

    python benchmarks/generation_memory.py          # about three minutes on two cores, 3 GiB: nothing is loaded

Programs are compiled for shapes alone, in float32: a CPU's compiler keeps float32 copies of whatever is bfloat16, which
accelerators do not. Prints a table in Markdown.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax import images
from seed_jax.inference import memory_plan
from seed_jax.inference.drawing.batch import Batch, draw_batch
from seed_jax.inference.generation.decode_loop import Decoding
from seed_jax.inference.generation.grammar import Grammar
from seed_jax.inference.generation.model_runner import Prompts, Streams
from seed_jax.inference.generation.sampling_params import Controls, Settings
from seed_jax.inference.memory_plan import GIB, Workload
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.models.diffusion import plan as steps_of
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig
from seed_jax.precision import Precision

LLAMA, TOKENIZER, DECODER = LlamaConfig.seed_8b(), SeedTokenizerConfig.full(), UnclipConfig.full()
GRAMMAR = Grammar(40194, 40192, 40193, 2, 32000, 8192, 32, (0, 1))


class NoStops:
    """Stands for the tables of stop strings where there are none."""

    def of(self, stops) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=1536, help="tokens of the prompt (default %(default)s)")
    args = parser.parse_args()
    work, half = Workload(prompt_length=args.prompt, new_tokens=512), Precision("bfloat16", "bfloat16")
    rounds, parts = {"quantize": "int8", "quantize_vit": "int8"}, {"tokenizer": TOKENIZER, "decoder": DECODER}
    for name, precision in (("as it runs, bfloat16", half), ("as compiled here, float32", Precision())):
        planned = memory_plan.plan(LLAMA, precision, work, **rounds, **parts)
        print(f"\n{name}:\n  " + "\n  ".join(planned.lines()))
    print("\n| program | plan: weights and cache | compiled: arguments | plan: while it runs | compiled: temporary |")
    print("|---|---:|---:|---:|---:|")
    kept, working = planned.kept, planned.working
    reading, generating = llama(work)
    weights, cache = kept["language model"], kept["keys and values"]
    row("reading prompts", weights, working["reading prompts"], reading)
    row("generating", weights + cache, working["generating"], generating)
    row("encoding a picture", kept["image tokenizer"], working["encoding pictures"], encoder())
    row("drawing a picture", kept["decoder"], working["drawing"], drawing())


def row(name: str, held: int, working: int, compiled) -> None:
    found = compiled.memory_analysis()
    numbers = (held, found.argument_size_in_bytes, working, found.temp_size_in_bytes)
    print(f"| {name} | " + " | ".join(f"{number / GIB:.2f}" for number in numbers) + " |", flush=True)


def llama(work: Workload):
    model = Llama(LLAMA, attention="chunked", scan=False)
    params, program = memory_plan.llama_weights(LLAMA, Precision(), "int8"), Decoding(Streams(model), GRAMMAR)
    length = work.slots(LLAMA)
    prompts = Prompts(shape(1, length, kind=jnp.int32), shape(1, kind=jnp.int32))
    controls = Controls.of([Settings()], [work.new_tokens], NoStops())
    controls = jax.tree.map(lambda leaf: shape(*np.shape(leaf), kind=np.asarray(leaf).dtype), controls)
    begin = jax.jit(lambda *given: program.begin(*given, work.new_tokens)).lower(params, prompts, controls)
    state = begin.out_info
    state = jax.tree.map(lambda leaf: shape(*leaf.shape, kind=leaf.dtype), state)
    go_on = jax.jit(program.go_on, donate_argnums=2).lower(params, controls, state, shape(kind=jnp.int32))
    return begin.compile(), go_on.compile()


def encoder():
    model, params = SeedTokenizer(TOKENIZER), memory_plan.tokenizer_weights(TOKENIZER, "int8")
    size = TOKENIZER.image_size

    def encode(params, pixels):
        return model.apply({"params": params}, images.normalize(pixels), method="encode").codes

    return jax.jit(encode).lower(params, shape(1, size, size, 3, kind=jnp.uint8)).compile()


def drawing():
    model, params = Unclip(DECODER), memory_plan.decoder_weights(DECODER, Precision())
    text, width, side = DECODER.text, DECODER.embedding_width, DECODER.unet.sample_size
    states = shape(1, text.max_length, DECODER.unet.text_width)
    row_ = shape(1, width)
    batch = Batch(row_, shape(1, side, side, DECODER.unet.in_channels), row_, states, states, None, row_)
    steps = steps_of("pndm", DECODER.noise, 20)

    def draw(params, batch, scale, level):
        return draw_batch(model, params, batch, steps, scale, level, guided=True)

    return jax.jit(draw).lower(params, batch, shape(), shape(kind=jnp.int32)).compile()


def shape(*sizes: int, kind=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, kind)


if __name__ == "__main__":
    main()
