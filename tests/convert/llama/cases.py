"""The recorded tiny LLaMA and its adapter as folders that transformers and peft read, and as a training workdir."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.store import Store
from seed_jax.convert.hugging_face.peft import import_adapter
from seed_jax.convert.llama.hf_export import LLAMA
from seed_jax.convert.llama.hf_import import import_llama
from seed_jax.data.text.vocabulary import train_small
from seed_jax.models.llama.model import LlamaConfig
from tests.support import golden

GOLDEN = LlamaConfig(366, 64, 172, 3, 4, 4, max_length=256)
TEXTS = ("a cat on a mat", "a dog in the fog")


def hugging_face(directory: Path) -> Path:
    """Write the model; its vocabulary has 300 text pieces and 64 image codes."""
    train_small(TEXTS, directory, vocab_size=300, num_codes=64)
    shutil.copy(golden.path("llama_tiny/weights.safetensors"), directory / "model.safetensors")
    config = golden.load_json("llama_tiny/config.json")
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def peft(directory: Path) -> Path:
    directory.mkdir()
    shutil.copy(golden.path("llama_tiny/lora.adapter.safetensors"), directory / "adapter_model.safetensors")
    found = golden.load_json("llama_tiny/lora.config.json")
    found.pop("adapter_keys")
    found |= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "vicuna"}
    (directory / "adapter_config.json").write_text(json.dumps(found))
    return directory


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def workdir(directory: Path, hf: Path, adapter: Path) -> Path:
    """Write what training leaves behind: base and adapters apart, the base in bfloat16."""
    found = import_llama(hf, "bfloat16")
    lora = import_adapter(LLAMA, adapter, GOLDEN)
    settings = {"rank": lora.spec.rank, "alpha": lora.spec.alpha, "dropout": lora.spec.dropout}
    files = {name: hf / name for name in ("tokenizer.model", "added_tokens.json")}
    config = {"sizes": GOLDEN.to_dict(), "lora": settings, "image_tokenizer": None}
    model_dir.save(directory / "model", "llama", config, None, files=files)
    variables = {"params": lora.replace_params(found.params), "lora": lora.adapters}
    store = Store(directory)
    optimizer = {"count": jnp.zeros(())}
    for step, scale in ((1, 0), (2, 1)):  # the newest counts
        params = jax.tree.map(lambda leaf, scale=scale: jnp.asarray(leaf) * scale, variables)
        store.save(step, params=params, optimizer=optimizer, data={}, meta={"architecture": {}})
    store.close()
    return directory
