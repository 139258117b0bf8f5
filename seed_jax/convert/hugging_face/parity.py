"""Parity reports of language models: compare tensors, and run a Hugging Face directory in PyTorch on the same tokens.

The forward passes need PyTorch, transformers, peft where there is an adapter, and the memory of the model in float32.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint.lazy import load_on_device
from seed_jax.convert.hugging_face.export import ADAPTER, BASE, Form
from seed_jax.convert.hugging_face.layout import HuggingFaceLayout
from seed_jax.convert.hugging_face.peft import adapter_table, adapter_tensors, import_adapter
from seed_jax.convert.hugging_face.source import LanguageModelSource
from seed_jax.convert.key_table import select_params, to_torch_tensors
from seed_jax.convert.merging import cast_params, merge_lora
from seed_jax.convert.parity import Check, ParityReport, make_report
from seed_jax.convert.tensors import TensorDict, open_tensors, weight_files
from seed_jax.models.language_models import model_class
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.precision import as_dtype

_BATCH_SIZE, _LENGTH = 2, 48
# In standard deviations of the logits. Float32 sums in another order change the output of 32 layers by about 1e-5; a
# wrong rotary layout, norm or transposed matrix by about 1.
_LOGITS_LIMIT = 1e-3
_KL_LIMIT = 1e-5
_FLOAT32 = np.dtype(np.float32)


def import_report(
    layout: HuggingFaceLayout,
    source: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    forward: bool = True,
) -> ParityReport:
    """Compare a model directory with the files it was imported from, or with the sum of base model and adapter.

    Args:
        layout: of the architecture.
        source: the Hugging Face directory.
        out: the model directory; its adapters are merged, or separate.
        adapter: the peft folder that was imported with it.
        forward: also compare logits with PyTorch.
    """
    imported, stored = layout.open(source), LanguageModelSource.open(layout, out)
    table = layout.key_table(stored.config)
    after = to_torch_tensors(table, select_params(table, stored.params), str(out))
    before, dtypes = imported.tensors, {"dtype": stored.dtype}
    pairs = []
    if adapter is not None:
        lora = import_adapter(layout, adapter, imported.config)
        params = lora.replace_params(imported.params)
        if stored.spec is None:
            params = merge_lora(params, lora.adapters, lora.spec)
        else:
            low_rank = adapter_table(layout, stored.config, stored.spec)
            pairs.append(
                (
                    to_torch_tensors(low_rank, lora.adapters, str(adapter)),
                    to_torch_tensors(low_rank, stored.adapters, str(out)),
                )
            )
            dtypes = {"dtype": _FLOAT32, "adapter_dtype": stored.dtype}
        before = to_torch_tensors(table, select_params(table, params), "base and adapter")
    pairs.insert(0, (TensorDict({name: before[name] for name in after}, before.source), after))

    def run() -> tuple[Check, ...]:
        return forward_checks(stored.config, stored.merged_params(), source, adapter=adapter, **dtypes)

    return make_report(
        "Import of a language model",
        {"from": str(source), "adapter": str(adapter), "to": str(out), "dtype": str(stored.dtype)},
        pairs,
        run if forward else None,
        needs=["torch", "transformers", *(["peft"] if adapter else [])],
        what="logits",
    )


def export_report(
    layout: HuggingFaceLayout,
    model: str | Path,
    out: str | Path,
    *,
    form: Form = "merged",
    dtype: str | None = None,
    forward: bool = True,
) -> ParityReport:
    """Compare an exported directory with the model it was made from.

    Args:
        layout: of the architecture.
        model: model directory or training workdir.
        out, form, dtype: as given to `export_language_model`.
        forward: also compare logits with PyTorch, and token ids with transformers; an adapter alone cannot be run.
    """
    source, out = LanguageModelSource.open(layout, model), Path(out)
    target = as_dtype(dtype) if dtype else source.dtype
    base = out / BASE if form == "peft" else out
    adapter = out / ADAPTER if form == "peft" else out
    pairs = []
    if form != "adapter":
        params = source.params if form == "peft" else source.merged_params()
        table = layout.key_table(source.config)
        before = to_torch_tensors(table, select_params(table, params), str(model))
        pairs.append((before, open_tensors(weight_files(base))))
    if form != "merged":
        pairs.append((adapter_tensors(source), open_tensors(adapter / "adapter_model.safetensors")))

    def run() -> tuple[Check, ...]:
        ids = (layout.token_id_check(base),) if source.files and layout.token_id_check else ()
        if form == "merged":
            return (*forward_checks(source.config, source.merged_params(), base, dtype=target), *ids)
        params = source.cast(target).merged_params()
        return (*forward_checks(source.config, params, base, adapter=adapter, dtype=_FLOAT32), *ids)

    return make_report(
        "Export of a language model",
        {"from": str(model), "to": str(out), "dtype": str(target)},
        pairs,
        run if forward and form != "adapter" else None,
        needs=["torch", "transformers", *([] if form == "merged" else ["peft"])],
        what="logits and token ids",
    )


def forward_checks(
    config: DecoderOnlyConfig,
    params: Mapping[str, Any],
    directory: str | Path,
    *,
    dtype: np.dtype,
    adapter: str | Path | None = None,
    adapter_dtype: np.dtype | None = None,
) -> tuple[Check, ...]:
    """Compare logits on fixed tokens; both sides compute in float32.

    Args:
        params: without separate adapters; arrays or lazy arrays.
        directory: for transformers' `from_pretrained`.
        dtype: that the weights of both sides are cast to first.
        adapter: a peft folder to apply to the PyTorch model.
        adapter_dtype: that PyTorch's base and adapter are cast to before they are merged; default: float32.
    """
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (_BATCH_SIZE, _LENGTH)).astype(np.int32)
    expected = _torch_logits(Path(directory), adapter, tokens, adapter_dtype or _FLOAT32, dtype)
    weights = load_on_device(cast_params(cast_params(params, dtype), _FLOAT32))
    logits = np.asarray(jax.jit(model_class(config)(config).apply)({"params": weights}, jnp.asarray(tokens)))
    return compare_logits(logits, expected)


def compare_logits(logits: np.ndarray, expected: np.ndarray) -> tuple[Check, ...]:
    """Return the distances between our logits and PyTorch's, [B, T, V] each."""
    difference = float(np.abs(logits - expected).max() / expected.std())
    log_p, log_q = _log_softmax(expected.astype(np.float64)), _log_softmax(logits.astype(np.float64))
    divergence = float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    return (
        Check("logits", difference, _LOGITS_LIMIT, "greatest difference from PyTorch's, in standard deviations"),
        Check("KL divergence", divergence, _KL_LIMIT, "of ours from PyTorch's next-token distribution, mean, in nats"),
    )


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _torch_logits(
    directory: Path, adapter: str | Path | None, tokens: np.ndarray, adapter_dtype: np.dtype, dtype: np.dtype
) -> np.ndarray:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # between transformers and peft
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory).float()
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
            _round_parameters(model, adapter_dtype)
            model = model.merge_and_unload()
        _round_parameters(model, dtype)
        return model.eval()(torch.from_numpy(tokens).long()).logits.numpy()


def _round_parameters(model: Any, dtype: np.dtype) -> None:
    """Round float32 parameters to the values that another dtype represents."""
    import torch

    for parameter in model.parameters():
        parameter.copy_(parameter.to(getattr(torch, str(dtype))))
