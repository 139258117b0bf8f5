"""Export an OPT as a directory that `transformers.OPTForCausalLM.from_pretrained` loads."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.hugging_face.export import Form, export_language_model
from seed_jax.convert.hugging_face.layout import HuggingFaceLayout
from seed_jax.convert.opt.hf_import import ARCHITECTURE, CONFIG_KEYS, REQUIRED_VALUES, TOKEN_IDS, open_opt
from seed_jax.convert.opt.key_table import (
    DECODER,
    NORMS,
    PROJECTIONS,
    abstract_params,
    code_projection,
    key_table,
)
from seed_jax.convert.sharded_writer import MAX_SHARD_SIZE
from seed_jax.models.opt.config import OptConfig
from seed_jax.models.opt.model import Opt


def export_opt(
    model: str | Path,
    out: str | Path,
    *,
    form: Form = "merged",
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    base: str | None = None,
) -> None:
    """Export an OPT for PyTorch's transformers and peft; arguments as of `export_language_model`.

    SEED-OPT's code vectors and their projection, for which transformers has no module, are written to
    `code_projection.safetensors`.

        export_opt("runs/opt", "opt_hf", dtype="float16")
        transformers.OPTForCausalLM.from_pretrained("opt_hf")
    """
    export_language_model(OPT, model, out, form=form, dtype=dtype, max_shard_size=max_shard_size, base=base)


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


def _copy_text_tokenizer(directory: Path, files: dict[str, Path]) -> None:
    for name, path in files.items():
        shutil.copyfile(path, directory / name)


OPT = HuggingFaceLayout(
    kind=ModelKind.OPT,
    title="SEED-OPT language model",
    has_script=False,
    config_class=OptConfig,
    lora_targets=Opt.lora_targets,
    layer=f"{DECODER}layers.{{}}",
    projections={name.replace(".", "/"): name for name in PROJECTIONS},
    # peft's copy of the embeddings leaves the tied head as it was, which therefore gets a copy of its own.
    saved_modules=("embed_tokens", "lm_head", *NORMS),
    vocabulary=(f"{DECODER}embed_tokens",),
    key_table=key_table,
    abstract_params=abstract_params,
    open=open_opt,
    hf_config=hf_config,
    token_ids=TOKEN_IDS,
    write_text_tokenizer=_copy_text_tokenizer,
    beside=code_projection,
)
