"""The source of an export: a model directory or training workdir, opened without reading its weights."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from seed_jax.checkpoint import model_dir
from seed_jax.convert.hugging_face.layout import HuggingFaceLayout
from seed_jax.convert.key_table import promoted_dtype
from seed_jax.convert.merging import cast_params, merge_lora
from seed_jax.data.text.vocabulary_files import TOKENIZER_FILES
from seed_jax.errors import UserError
from seed_jax.models.nn import lora
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.typing import Tree


@dataclasses.dataclass(frozen=True)
class LanguageModelSource:
    """A language model whose parameters are lazy arrays.

    Args:
        layout: of the architecture.
        config: sizes.
        params: lazy arrays, without the adapters.
        adapters: LoRA parameters that training kept separate; empty where there are none.
        spec: of the adapters.
        files: name -> path of the text tokenizer's files.
    """

    layout: HuggingFaceLayout
    config: DecoderOnlyConfig
    params: Tree
    adapters: Tree
    spec: LoraSpec | None
    files: dict[str, Path]

    @classmethod
    def open(cls, layout: HuggingFaceLayout, directory: str | Path) -> "LanguageModelSource":
        """Open a model directory or workdir.

        Raises:
            UserError: it is not a language model of this architecture, or its parameters do not fit its config.
        """
        model = model_dir.open_lazily(directory, layout.kind)
        config = layout.config_class.from_dict(model.config.get("sizes", {}), model.config_path)
        params = model.variables["params"]
        adapters, spec = read_adapters(model)
        model_dir.check_tree(params, layout.abstract_params(config), str(directory))
        return cls(
            layout=layout,
            config=config,
            params=params,
            adapters=adapters,
            spec=spec,
            files={name: path for name in TOKENIZER_FILES if (path := model.directory / name).is_file()},
        )

    @property
    def dtype(self) -> np.dtype:
        """The narrowest dtype that represents everything that is stored."""
        return promoted_dtype(np.dtype(leaf.dtype) for leaf in jax.tree.leaves((self.params, self.adapters)))

    def merged_params(self) -> Tree:
        """Return the parameters with the adapters merged in: lazy arrays, merged kernels in float32."""
        return self.params if self.spec is None else merge_lora(self.params, self.adapters, self.spec)

    def cast(self, dtype: np.dtype) -> "LanguageModelSource":
        """Return the same model with parameters and adapters cast to another dtype."""
        params = cast_params(self.params, dtype)
        return dataclasses.replace(self, params=params, adapters=cast_params(self.adapters, dtype))


def read_adapters(model: model_dir.ModelDir) -> tuple[Tree, LoraSpec | None]:
    """Return the adapters that training kept separate, and their sizes; an empty tree and None without adapters.

    Raises:
        UserError: the config of the model directory lacks the sizes.
    """
    adapters = model.variables.get("lora") or {}
    if not adapters:
        return {}, None
    settings = model.config.get("lora")
    if not settings:
        raise UserError(f"{model.config_path} lacks 'lora', the rank and scale of the checkpoint's adapters.")
    targets = sorted({path[-2] for path in flatten_dict(adapters)})
    return adapters, lora.read_spec(settings, model.config_path, targets)
