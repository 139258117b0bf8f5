"""Convert a Hugging Face language model, with a peft adapter and a text tokenizer, to a model directory."""

import logging
import os
from pathlib import Path
from typing import Any

from seed_jax.checkpoint import model_dir
from seed_jax.convert.hugging_face.layout import HuggingFaceLayout
from seed_jax.convert.hugging_face.peft import import_adapter
from seed_jax.convert.merging import cast_params
from seed_jax.convert.model_card.facts import ARTEFACTS, origins
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.data.text.vocabulary_files import TOKENIZER_FILES
from seed_jax.errors import UserError
from seed_jax.files import check_vacant, read_json
from seed_jax.lfs import check_not_pointer
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.precision import as_dtype


def import_to_model_dir(
    layout: HuggingFaceLayout,
    source: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    unmerged: bool = False,
    vocabulary: str | Path | None = None,
    image_tokenizer: str | Path | None = None,
    decoder: str | Path | None = None,
    prompt_style: str | None = None,
    dtype: str | None = None,
) -> DecoderOnlyConfig:
    """Convert a language model, one tensor at a time.

        import_to_model_dir(LLAMA, "seed_llama_8b_hf", "weights/seed_llama_8b", image_tokenizer="weights/tokenizer")

    Args:
        layout: of the architecture.
        source: Hugging Face directory.
        out: model directory to write, atomically; must be missing or empty.
        adapter: peft folder to merge into the model.
        unmerged: keep the adapter separate, as training does.
        vocabulary: directory of the text tokenizer's files; default: `source`.
        image_tokenizer: model directory of the image tokenizer that belongs to the model.
        decoder: model directory of the image decoder that belongs to the model.
        prompt_style: "base", "vicuna", "llama2" or "seed1", as the model was tuned; default: base.
        dtype: float32, bfloat16 or float16; default: as in the files.

    Returns:
        The config of the model that was written.

    Raises:
        UserError: the files are damaged, or the model, adapter and text tokenizer do not fit together.
    """
    source, out = Path(source), Path(out)
    check_vacant(out)
    if unmerged and adapter is None:
        raise UserError("--unmerged keeps an adapter separate from its base model: give one with --adapter.")
    # With an adapter, casting is the last step: sums are computed in float32.
    opened = layout.open(source, None if adapter else dtype)
    config, params = opened.config, opened.params
    keys: dict[str, Any] = {}
    provenance: dict[str, Any] = {"from": str(source), ARTEFACTS: origins(source, vocabulary, adapter)}
    if adapter is not None:
        lora = import_adapter(layout, adapter, config)
        config = lora.config
        provenance["adapter"] = str(adapter)
        if unmerged:
            params = {"params": lora.replace_params(params), "lora": lora.adapters}
            params = cast_params(params, as_dtype(dtype)) if dtype else params
            keys["lora"] = {name: getattr(lora.spec, name) for name in ("rank", "alpha", "dropout")}
        else:
            params = lora.merge(params, dtype)
    files = vocabulary_files(Path(vocabulary or source), config)
    keys["sizes"] = config.to_dict()
    keys |= component_paths(out, image_tokenizer, decoder)
    if prompt_style is not None:
        keys["prompt_style"] = prompt_style
    model_dir.save(out, layout.kind, keys, params, files=files, provenance=provenance)
    return config


def component_paths(out: Path, image_tokenizer: str | Path | None, decoder: str | Path | None) -> dict[str, str | None]:
    """Return the keys of `config.json` that name the other models which belong to a language model.

    The paths are relative to its model directory `out`, so that the directories can be moved together.
    """
    directories = {"image_tokenizer": image_tokenizer, "decoder": decoder}
    return {
        key: os.path.relpath(Path(directory).resolve(), out.resolve()) if directory else None
        for key, directory in directories.items()
    }


def vocabulary_files(directory: Path, config: DecoderOnlyConfig) -> dict[str, Path]:
    """Find the text tokenizer's files to copy into the model directory.

    Returns:
        name -> path; empty for a base model, whose vocabulary has no image tokens.

    Raises:
        UserError: the vocabulary and the model have different sizes.
    """
    files = {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}
    for path in files.values():
        check_not_pointer(path)
    added = directory / "added_tokens.json"
    if not added.exists() or not any(name.startswith("<img") for name in read_json(added, "copy the file again")):
        logging.warning(
            "%s has no image tokens in an added_tokens.json: a model without them can start a training run "
            "(model.init), but not generate. If this is a SEED-LLaMA, give its text tokenizer with --vocabulary.",
            directory,
        )
        return {}
    vocabulary = Vocabulary.load(directory)
    if vocabulary.size != config.vocab_size:
        raise UserError(
            f"{directory} has a vocabulary of {vocabulary.size} tokens but the model has {config.vocab_size}: give the "
            "model's own text tokenizer with --vocabulary."
        )
    return files
