"""Programs that compile fast, for tests that run a few steps of many of them."""

import contextlib
from collections.abc import Iterator

import jax
import pytest

from seed_jax import sharding


@contextlib.contextmanager
def quick(devices: int) -> Iterator[None]:
    """Cut everything over so many devices, whatever a config says, and compile without XLA's optimisations."""
    mesh = sharding.make_mesh({"fsdp": devices}, jax.devices()[:devices])
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "make_mesh", lambda *_, **__: mesh)
            yield
    finally:  # also where a test fails inside: the ones after it are not to be compiled so
        jax.config.update("jax_disable_most_optimizations", False)
