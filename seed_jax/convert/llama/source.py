"""A language model to export: a model directory or a training workdir, opened without reading its weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.convert.key_table import widest
from seed_jax.convert.llama.key_table import abstract_params
from seed_jax.convert.merging import converted, merged
from seed_jax.errors import UserError
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.nn.lora import LoraSpec

KIND = "llama"
TOKENIZER_FILES = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class LlamaSource:
    """Parameters as lazy arrays, and adapters where training left them apart."""

    config: LlamaConfig
    params: dict[str, Any]
    adapters: dict[str, Any]  # empty where there are none
    spec: LoraSpec | None
    files: dict[str, Path]  # of the text tokenizer

    @property
    def dtype(self) -> np.dtype:
        """The widest number format of what is stored."""
        return widest(np.dtype(leaf.dtype) for leaf in jax.tree.leaves((self.params, self.adapters)))

    def merged(self) -> dict[str, Any]:
        """Return the parameters of one model without adapters: lazy arrays, sums in float32."""
        return merged(self.params, self.adapters, self.spec) if self.adapters else self.params

    def rounded(self, dtype: np.dtype) -> "LlamaSource":
        """Return the same with everything stored in another number format."""
        return dataclasses.replace(self, params=converted(self.params, dtype), adapters=converted(self.adapters, dtype))


def open_source(directory: str | Path) -> LlamaSource:
    """Open a language model and check its parameters' names and shapes."""
    found = model_dir.open_lazily(directory, KIND)
    where = str(found.directory / model_dir.CONFIG)
    config = LlamaConfig.from_dict(found.config.get("sizes", {}), where)
    variables = found.params if "params" in found.params else {"params": found.params}
    adapters, settings = variables.get("lora") or {}, found.config.get("lora")
    if adapters and not settings:
        raise UserError(f"{where} does not say how the checkpoint's adapters are scaled: it has no 'lora'.")
    model_dir.check_tree(variables["params"], abstract_params(config), str(directory))
    return LlamaSource(
        config=config,
        params=variables["params"],
        adapters=adapters,
        spec=_spec(settings, adapters) if adapters else None,
        files={name: path for name in TOKENIZER_FILES if (path := found.directory / name).is_file()},
    )


def _spec(settings: dict[str, Any], adapters: dict[str, Any]) -> LoraSpec:
    targets = sorted(name for group in adapters["layers"].values() for name in group)
    return LoraSpec(**{**settings, "targets": tuple(targets)})
