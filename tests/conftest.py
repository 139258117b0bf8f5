"""Eight fake devices, checked shapes and strict ranks for every test."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

# Every jaxtyping annotation in the package is checked while the tests run.
install_import_hook("seed_jax", "beartype.beartype")

import jax
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "warn")
flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
