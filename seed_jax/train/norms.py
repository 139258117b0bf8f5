"""Norms by layer, on request: where in the network gradients vanish or explode."""

from collections import defaultdict

import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from seed_jax.train.state import Tree


def by_layer(name: str, tree: Tree) -> dict[str, Array]:
    """Return `name/<layer>` -> norm: of stacked layers one by one (`layers/07`), of other tensors by their module."""
    squares: dict[str, list[Array]] = defaultdict(list)
    for path, leaf in flatten_dict(tree).items():
        square = jnp.square(leaf.astype(jnp.float32))
        if "layers" not in path:
            squares["/".join(path[1:2] or path)].append(square.sum())
            continue
        sums = square.reshape(leaf.shape[0], -1).sum(-1)
        for layer in range(leaf.shape[0]):
            squares[f"layers/{layer:02d}"].append(sums[layer])
    return {f"{name}/{layer}": jnp.sqrt(sum(parts)) for layer, parts in sorted(squares.items())}
