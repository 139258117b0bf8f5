"""Print the rows of `seed_jax/plan/attention_cycles.py`: instruction bundles of the splash attention kernels.

    python benchmarks/attention_bundles.py --topology v5e:2x2 --block 512

Compiles causal attention with segments, one head of 128 and 2048 positions, forward and backward, and reads the
schedule that the TPU compiler writes: the sizes of the branches that initialize an accumulator, compute a pair of
blocks and write the accumulator, and what is left of a grid step. Needs `pip install 'seed-jax[tpu]'` and no TPU; ten
seconds.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path

LENGTH, HEAD_SIZE = 2048, 128
MIN_BRANCH = 16  # bundles; smaller branches are bookkeeping
KERNELS = ("fwd", "dq", "dkv")


def main() -> None:
    """Compile, parse, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="as for `seed-jax plan` (default: %(default)s)")
    parser.add_argument("--block", type=int, default=512, help="queries and keys of a block (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compile_attention(args.topology, args.block, folder)
        for kernel in KERNELS:
            (path,) = (
                path for path in Path(folder).glob(f"*mha_{kernel}_*final_bundles.txt") if "schedule" not in path.name
            )
            block, row, step = bundles(path.read_text(errors="replace"))
            print(f"{args.topology} {kernel}: block {block}, row {row}, step {step}")


def compile_attention(topology_name: str, block: int, folder: str) -> None:
    """Compile attention with the compiler's dumps in `folder`."""
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
    )
    from seed_jax.plan import topology

    topology.prepare()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from seed_jax.models.nn import splash_attention

    device = topology.find(topology_name).devices[:1]
    sharding = NamedSharding(Mesh(np.array(device), ("x",)), PartitionSpec())
    heads = jax.ShapeDtypeStruct((1, LENGTH, 1, HEAD_SIZE), jnp.bfloat16, sharding=sharding)
    segments = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32, sharding=sharding)

    def loss(q, k, v, segments):
        context = splash_attention.attend(q, k, v, causal=True, segment_ids=segments, scale=None, block_size=block)
        return jnp.square(context.astype(jnp.float32)).sum()

    jax.jit(jax.grad(loss, (0, 1, 2))).lower(heads, heads, heads, segments).compile()


def bundles(text: str) -> tuple[int, int, int]:
    """Return the bundles for a pair of blocks, for a row of blocks and for every grid step."""
    starts: dict[int, int] = {}
    lines = []
    for line in text.splitlines():
        if address := re.match(r"\s*(0x[0-9a-f]+|0)\s", line):
            lines.append((int(address[1], 16), line))
    for address, line in lines:
        for region in re.findall(r"Start(?:/End empty)? region (\d+)", line):
            starts.setdefault(int(region), address)
        for region in re.findall(r"Start/End empty region (\d+)", line):
            starts[int(region)] = address
    branches = []
    for address, line in lines:
        for region in re.findall(r"sbr\.rel \([^)]*\) target = \$region(\d+)", line):
            branches.append((address, starts.get(int(region), address) - address))
    loop = -min(size for _, size in branches)
    large = [(address, size) for address, size in branches if size >= MIN_BRANCH]
    sizes = [
        size  # without those that contain another
        for address, size in large
        if not any(address < other and other + inner <= address + size for other, inner in large)
    ]
    compute = max(sizes)
    return compute, sum(sizes) - compute, loop - sum(sizes)


if __name__ == "__main__":
    main()
