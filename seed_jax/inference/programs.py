"""Jitted programs that objects of equal models share.

`jax.jit` keeps what it compiled with the function it wraps. A function that every object wraps anew is traced and
compiled anew, although another checkpoint of the same sizes needs the same programs. The builders of this package are
functions of what the programs depend on, and remember their results. No program may refer to parameters: they would
stay on the device as long as it does.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Inputs = ParamSpec("Inputs")
Built = TypeVar("Built")

_REMEMBERED = 8  # results of a builder, the least recently used ones are dropped


def shared(build: Callable[Inputs, Built]) -> Callable[Inputs, Built]:
    """Decorate a builder of jitted functions so that equal (hashable) arguments get the functions built before.

    Example:
        @shared
        def embed_program(model: Llama) -> Callable:
            return jax.jit(lambda params, ids: model.apply({"params": params}, ids, method="embed"))
    """

    remember: Any = functools.lru_cache(_REMEMBERED)(build)
    return remember
