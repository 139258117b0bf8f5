"""Planned images per second and chip of bulk tokenization, by the TPU compiler's cycles; needs seed-jax[tpu], no TPU.

    python benchmarks/tokenizer_plan.py [--topologies v5e:1x1 v6e:1x1 v5p:1x1x1] [--batch-size 64]

Compiles the encoder of the released sizes (ViT-g, Q-Former, projection, distances) for one chip at each precision, and
prints a Markdown table. As in `seed-jax plan`, the compiler's cycles over the clock are an estimate that was never
checked on hardware. Share of peak: of the bfloat16 peak, with each multiplication counted once.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from seed_jax import images
from seed_jax.inference.image_tokenizer import PRECISIONS, _kernel_dtype
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, abstract_params
from seed_jax.plan import hlo, topology
from seed_jax.plan.executed_flops import count_flops
from seed_jax.precision import Precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:1x1", "v6e:1x1", "v5p:1x1x1"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    topology.prepare()
    print("| chip | precision | batch | images/s (planned) | share of peak | peak memory, GiB |")
    print("|---|---|---:|---:|---:|---:|")
    for name in args.topologies:
        target = topology.find(name)
        for precision in args.precisions:
            print(f"| {target.accelerator.name} {row(target, precision, args.batch_size)}", flush=True)


def row(target: topology.Topology, name: str, batch_size: int) -> str:
    """Compile the encoder for one chip and return its row of the table."""
    config, precision = SeedTokenizerConfig.full(), Precision(compute=name)
    model: Any = SeedTokenizer(config, precision)
    sharding = SingleDeviceSharding(target.devices[0])

    def encode(params: Any, pixels: jax.Array) -> jax.Array:
        return model.apply({"params": params}, images.normalize(pixels), method="encode").codes

    def placed(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = _kernel_dtype(tuple(key.key for key in path), precision) or leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    params = jax.tree_util.tree_map_with_path(placed, abstract_params(config))
    shape = (batch_size, config.image_size, config.image_size, 3)
    traced = jax.jit(encode).trace(params, jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding))
    compiled = traced.lower().compile()
    seconds = hlo.cycles(hlo.parse(compiled.as_text() or "")) / target.accelerator.clock_hz
    share = count_flops(traced.jaxpr.jaxpr).matmuls / seconds / target.accelerator.peak_flops
    memory: Any = compiled.memory_analysis()
    peak = memory.peak_memory_in_bytes / 2**30
    return f"| {name} | {batch_size} | {batch_size / seconds:,.0f} | {share:.0%} | {peak:.2f} |"


if __name__ == "__main__":
    main()
