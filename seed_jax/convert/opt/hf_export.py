"""Export an OPT as a directory that `transformers.OPTForCausalLM.from_pretrained` loads."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.key_table import promoted_dtype, to_torch_tensors
from seed_jax.convert.llama.hf_export import MAX_SHARD_SIZE, write_weights
from seed_jax.convert.llama.source import read_adapters
from seed_jax.convert.merging import merge_lora
from seed_jax.convert.model_card.card import write_export_card
from seed_jax.convert.opt.hf_import import ARCHITECTURE, CONFIG_KEYS, REQUIRED_VALUES, TOKEN_IDS
from seed_jax.convert.opt.key_table import abstract_params, key_table
from seed_jax.data.text.vocabulary_files import TOKENIZER_FILES
from seed_jax.files import new_directory, write_json
from seed_jax.models.opt.config import OptConfig
from seed_jax.precision import as_dtype


def export_opt(
    model: str | Path, out: str | Path, *, dtype: str | None = None, max_shard_size: int = MAX_SHARD_SIZE
) -> None:
    """Export an OPT, its adapters merged, for PyTorch's transformers, one tensor at a time.

        export_opt("runs/opt", "opt_hf", dtype="float16")
        transformers.OPTForCausalLM.from_pretrained("opt_hf")

    Args:
        model: model directory or training workdir.
        out: directory to write, atomically; must be missing or empty.
        dtype: float32, bfloat16 or float16; default: the widest of what is stored.
        max_shard_size: bytes per weight file; a single larger tensor gets a file of its own.

    Raises:
        UserError: the model is not an OPT, or `dtype` cannot represent a value.
    """
    opened = model_dir.open_lazily(model, ModelKind.OPT)
    config = OptConfig.from_dict(opened.config.get("sizes", {}), opened.config_path)
    params, (adapters, spec) = opened.variables["params"], read_adapters(opened)
    model_dir.check_tree(params, abstract_params(config), str(model))
    stored = promoted_dtype(np.dtype(leaf.dtype) for leaf in jax.tree.leaves((params, adapters)))
    if spec is not None:
        params = merge_lora(params, adapters, spec)
    target = as_dtype(dtype) if dtype else stored
    files = {name: path for name in TOKENIZER_FILES if (path := opened.directory / name).is_file()}
    with new_directory(out) as folder:
        write_weights(folder, to_torch_tensors(key_table(config), params, str(model)), target, max_shard_size)
        write_json(folder / "config.json", hf_config(config, target))
        write_json(folder / "generation_config.json", dict(TOKEN_IDS))
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
        write_export_card(
            folder,
            model,
            title="SEED-OPT language model",
            library="transformers",
            pipeline="text-generation",
            load='from transformers import OPTForCausalLM\n\nmodel = OPTForCausalLM.from_pretrained(".")',
            script=False,
        )
    if not files:
        logging.warning("%s has no text tokenizer: copy its files into %s.", model, out)


def hf_config(config: OptConfig, dtype: np.dtype) -> dict[str, Any]:
    """Return the content of `config.json`."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "opt",
        **{key: getattr(config, field) for field, key in CONFIG_KEYS.items()},
        **{key: value for key, value in REQUIRED_VALUES.items() if value is not None},
        "_remove_final_layer_norm": config.pre_norm and not config.final_norm,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "use_cache": True,
        **TOKEN_IDS,
        "torch_dtype": str(dtype),
    }
