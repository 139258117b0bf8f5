"""Run a Hugging Face directory in PyTorch and our parameters here on the same tokens.

Needs PyTorch, transformers, peft where there is an adapter, and the memory of the model in float32.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint.lazy import on_device
from seed_jax.convert.merging import converted
from seed_jax.convert.parity import Check
from seed_jax.models.llama.model import Llama, LlamaConfig

_ROWS, _LENGTH = 2, 48
# Of the logits' standard deviation. Float32 sums in another order move 32 layers by about 1e-5 of it; a wrong rotary
# layout, norm or transposed matrix by about 1.
_LOGITS_LIMIT = 1e-3
_KL_LIMIT = 1e-5


def forward_checks(
    config: LlamaConfig,
    params: Mapping[str, Any],
    directory: str | Path,
    *,
    dtype: np.dtype,
    adapter: str | Path | None = None,
    adapter_dtype: np.dtype | None = None,
) -> tuple[Check, ...]:
    """Compare logits on fixed tokens, both sides computing in float32.

    Args:
        params: of one model without adapters; arrays, lazy ones too.
        directory: that transformers loads, and `adapter` that peft puts on it.
        dtype: both sides' weights are rounded to this format first.
        adapter_dtype: PyTorch's base and adapter are rounded to this format before they are merged.
    """
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (_ROWS, _LENGTH)).astype(np.int32)
    theirs = _theirs(Path(directory), adapter, tokens, adapter_dtype or np.dtype(np.float32), dtype)
    ours = on_device(converted(converted(params, dtype), np.dtype(np.float32)))
    logits = np.asarray(jax.jit(Llama(config).apply)({"params": ours}, jnp.asarray(tokens)))
    return compare_logits(logits, theirs)


def compare_logits(ours: np.ndarray, theirs: np.ndarray) -> tuple[Check, ...]:
    """Return how far apart two sets of logits are."""
    apart = float(np.abs(ours - theirs).max() / theirs.std())
    p, q = (_log_softmax(side.astype(np.float64)) for side in (theirs, ours))
    divergence = float((np.exp(p) * (p - q)).sum(-1).mean())
    return (
        Check("logits", apart, _LOGITS_LIMIT, "greatest difference from PyTorch's, in standard deviations"),
        Check("KL divergence", divergence, _KL_LIMIT, "of ours from PyTorch's next-token distribution, mean, in nats"),
    )


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _theirs(
    directory: Path, adapter: str | Path | None, tokens: np.ndarray, parts: np.dtype, whole: np.dtype
) -> np.ndarray:
    import torch
    import transformers

    def round_to(dtype: np.dtype) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(getattr(torch, str(dtype))))

    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between transformers and peft
        model = transformers.LlamaForCausalLM.from_pretrained(directory).float()
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
            round_to(parts)
            model = model.merge_and_unload()
    round_to(whole)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens).long()).logits.numpy()
