"""Abstract parameters that are traced once in a process."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import jax

from seed_jax.typing import Tree

P = ParamSpec("P")


def traced_once(abstract: Callable[P, Tree]) -> Callable[P, Tree]:
    """Cache what a function of hashable arguments returns: to trace a model of the released sizes takes seconds.

    Example:
        @traced_once
        def abstract_params(config: LlamaConfig) -> Tree:
            return jax.eval_shape(lambda: Llama(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]

    Args:
        abstract: returns a tree of abstract arrays.

    Returns:
        The same function; each call returns new dicts, which the caller may change.
    """
    cached = functools.cache(abstract)

    @functools.wraps(abstract)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tree:
        return jax.tree.map(lambda leaf: leaf, cached(*args, **kwargs))

    return call
