"""Meshes that replace those of the configs: tests have eight devices, and few need more than one."""

import contextlib
from collections.abc import Iterator

import jax
import pytest

from seed_jax import sharding


@contextlib.contextmanager
def on_devices(count: int) -> Iterator[None]:
    """Use an FSDP mesh over the first `count` devices, whatever a config says."""
    mesh = sharding.make_mesh({"fsdp": count}, jax.devices()[:count])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_, **__: mesh)
        yield
