"""Type aliases shared by all packages."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

# A leaf of a pytree that a compiled program takes or returns: an array, or its description for ahead-of-time
# compilation.
# Type checkers see arrays only: the code inside compiled programs indexes and adds leaves.
if TYPE_CHECKING:
    Leaf = jax.Array
else:
    Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct | jax.stages.ArgInfo

# A nested dict of arrays, or of descriptions of arrays (shapes, shardings), such as a model's parameters.
Tree = dict[str, Any]

# The path of a leaf in a Tree.
ParamPath = tuple[str, ...]
