"""Eight fake devices, checked shapes and strict ranks for every test."""

import gc
import os
import tempfile

from tests.support import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags.flags(8)}"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Programs that several tests or their subprocesses run (resumed runs, other folders) are compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="seed_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# =0 runs the tests with all of XLA's optimisations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from jaxtyping import install_import_hook

# Every jaxtyping annotation in the package is checked while the tests run.
install_import_hook("seed_jax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "warn")
# Tracing makes millions of objects that live as long as JAX's caches: to search them for cycles as often as Python does
# by default took 6.3 of 96 processor seconds of model tests, now 2.2.
gc.set_threshold(50_000, 20, 50)


def pytest_collection_finish():
    """Exempt the collected modules from garbage collection."""
    gc.freeze()


def pytest_sessionfinish():
    """Exempt what is left from the five collections with which pytest ends; the process ends with them."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _optimized_compiles(request):
    """Compile tests marked `optimized`, which measure memory or programs, with the optimizations that users get."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    disabled = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", disabled)
