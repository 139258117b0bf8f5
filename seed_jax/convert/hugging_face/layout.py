"""How a language model is stored for transformers and peft: what import, export and parity reports need to know."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.key_table import Entry
from seed_jax.convert.parity import Check
from seed_jax.convert.tensors import TensorDict
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.typing import Tree


class OpenedModel(Protocol):
    """A language model of a Hugging Face directory."""

    @property
    def config(self) -> Any: ...

    @property
    def params(self) -> Tree: ...

    @property
    def tensors(self) -> TensorDict: ...


@dataclasses.dataclass(frozen=True)
class HuggingFaceLayout:
    """The layout of one architecture; the instances are `llama.hf_export.LLAMA` and `opt.hf_export.OPT`.

    Attributes:
        kind: of the model directory.
        title: of the model card of an export.
        has_script: whether an export comes with `load_in_pytorch.py`.
        config_class: sizes of the model.
        lora_targets: names of the projections that adapters may adapt.
        layer: name of a layer's modules, such as "model.layers.{}".
        projections: path of a projection below `layers` -> its name below `layer`.
        saved_modules: modules that training with adapters changes too (peft's `modules_to_save`).
        vocabulary: names of the weights with a row per token, below the model.
        key_table: entries of the whole model.
        abstract_params: sizes, dtype -> abstract parameters.
        open: directory, dtype -> the model, weights unread.
        hf_config: sizes, dtype -> content of `config.json`.
        token_ids: content of `generation_config.json`.
        write_text_tokenizer: folder, name -> path of the files in a model directory.
        token_id_check: compares token ids of an exported folder with transformers'.
        beside: file that holds what Hugging Face's class has no module for, and its entries; None without.
    """

    kind: ModelKind
    title: str
    has_script: bool
    config_class: type[DecoderOnlyConfig]
    lora_targets: tuple[str, ...]
    layer: str
    projections: Mapping[str, str]
    saved_modules: tuple[str, ...]
    vocabulary: tuple[str, ...]
    key_table: Callable[[Any], list[Entry]]
    abstract_params: Callable[..., Tree]
    open: Callable[..., OpenedModel]
    hf_config: Callable[[Any, np.dtype], dict[str, Any]]
    token_ids: Mapping[str, int]
    write_text_tokenizer: Callable[[Path, dict[str, Path]], None]
    token_id_check: Callable[[Path], Check] | None = None
    beside: Callable[[Any], tuple[str, list[Entry]] | None] = lambda config: None

    def all_entries(self, config: Any) -> list[Entry]:
        """Return an entry for every parameter, those of the file beside the model included."""
        beside = self.beside(config)
        return self.key_table(config) + (beside[1] if beside else [])
