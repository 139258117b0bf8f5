"""The language models: the one place that knows them all.

To add a decoder-only model, write its directory (config, block, model; see `models/opt`) and list it here; its import
and export are a directory of `convert`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from seed_jax.errors import UserError
from seed_jax.models.abstract import traced_once
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.llama.model import Llama
from seed_jax.models.nn.decoder_only import DecoderOnly, DecoderOnlyConfig
from seed_jax.models.opt.config import OptConfig
from seed_jax.models.opt.model import Opt
from seed_jax.precision import Precision
from seed_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The classes of a language model."""

    config_class: type[DecoderOnlyConfig]
    model_class: type[DecoderOnly]


# The kind of a model directory (`checkpoint.kinds.ModelKind`) -> its classes.
ARCHITECTURES = {"llama": Architecture(LlamaConfig, Llama), "opt": Architecture(OptConfig, Opt)}


def read_sizes(kind: str, sizes: Mapping[str, Any], where: str = "config") -> DecoderOnlyConfig:
    """Return the config that `sizes` of a model directory's `config.json` describe.

    Args:
        kind: of the model directory.
        sizes: result of `DecoderOnlyConfig.to_dict`.
        where: origin of the sizes in error messages.

    Raises:
        UserError: the kind is not a language model, or the sizes are not those of its config.
    """
    if kind not in ARCHITECTURES:
        raise UserError(f"{where} has the kind {kind!r}, expected a language model: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[kind].config_class.from_dict(sizes, where)


def model_class(config: DecoderOnlyConfig) -> type[DecoderOnly]:
    """Return the class of the model that has this config."""
    return next(entry.model_class for entry in ARCHITECTURES.values() if isinstance(config, entry.config_class))


@traced_once
def abstract_params(config: DecoderOnlyConfig, precision: Precision = Precision(), *, scan_layers: bool = True) -> Tree:
    """Return the parameters of a model as abstract arrays with logical axis names."""
    model = model_class(config)(config, precision, scan_layers=scan_layers)
    # The key is made inside: the devices of a mesh may exist in a plan only.
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]


def kind_of(config: DecoderOnlyConfig) -> str:
    """Return the kind of a model directory that holds a model of this config."""
    return next(kind for kind, entry in ARCHITECTURES.items() if isinstance(config, entry.config_class))
