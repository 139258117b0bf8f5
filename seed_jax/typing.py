"""Type aliases shared by all packages."""

from typing import Any

import jax
import numpy as np

# Leaves of pytrees that go in and out of compiled programs: arrays, and what stands for them while compiling ahead of
# time.
Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct | jax.stages.ArgInfo

# A nested dict of arrays or of values that describe them (shapes, shardings), such as the parameters of a model.
Tree = dict[str, Any]

# The path of a leaf in a Tree.
ParamPath = tuple[str, ...]
