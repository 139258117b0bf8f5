"""Export a LLaMA as a directory that `transformers.LlamaForCausalLM.from_pretrained` loads."""

from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.hugging_face.export import Form, export_language_model
from seed_jax.convert.hugging_face.layout import HuggingFaceLayout
from seed_jax.convert.llama.hf_import import ARCHITECTURE, CONFIG_KEYS, TOKEN_IDS, open_llama
from seed_jax.convert.llama.key_table import NORMS, PROJECTIONS, abstract_params, key_table
from seed_jax.convert.llama.text_tokenizer import token_id_check, write_text_tokenizer
from seed_jax.convert.sharded_writer import MAX_SHARD_SIZE
from seed_jax.models.llama.model import Llama, LlamaConfig


def export_llama(
    model: str | Path,
    out: str | Path,
    *,
    form: Form = "merged",
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    base: str | None = None,
) -> None:
    """Export a LLaMA for PyTorch's transformers and peft; arguments as of `export_language_model`.

    export_llama("runs/sft", "sft_hf", dtype="bfloat16")
    transformers.LlamaForCausalLM.from_pretrained("sft_hf")
    """
    export_language_model(LLAMA, model, out, form=form, dtype=dtype, max_shard_size=max_shard_size, base=base)


def hf_config(config: LlamaConfig, dtype: np.dtype) -> dict[str, Any]:
    """Return the content of `config.json`, with the token ids that the tokenizer has (spec I.A.1)."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **{key: getattr(config, field) for field, key in CONFIG_KEYS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        **TOKEN_IDS,
        "torch_dtype": str(dtype),
    }


LLAMA = HuggingFaceLayout(
    kind=ModelKind.LLAMA,
    title="SEED-LLaMA language model",
    has_script=True,
    config_class=LlamaConfig,
    lora_targets=Llama.lora_targets,
    layer="model.layers.{}",
    projections=PROJECTIONS,
    saved_modules=("embed_tokens", "lm_head", *NORMS, "norm"),  # spec D.1
    vocabulary=("model.embed_tokens", "lm_head"),
    key_table=key_table,
    abstract_params=abstract_params,
    open=open_llama,
    hf_config=hf_config,
    token_ids=TOKEN_IDS,
    write_text_tokenizer=write_text_tokenizer,
    token_id_check=token_id_check,
)
