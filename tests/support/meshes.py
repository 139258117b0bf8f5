"""Meshes in place of those that configs ask for: tests have eight devices, few of them need more than one."""

import contextlib
from collections.abc import Iterator

import jax
import pytest

from seed_jax import sharding


@contextlib.contextmanager
def on_devices(count: int) -> Iterator[None]:
    """Cut everything over so many devices, whatever a config says."""
    mesh = sharding.make_mesh({"fsdp": count}, jax.devices()[:count])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_, **__: mesh)
        yield
