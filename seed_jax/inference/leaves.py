"""The type of the leaves of structures (pytrees) that go in and out of compiled programs, for their annotations."""

import jax
import numpy as np

# Arrays of JAX and NumPy, and what stands for them while a program is compiled ahead of time.
Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct | jax.stages.ArgInfo
