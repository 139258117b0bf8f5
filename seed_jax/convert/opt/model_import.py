"""Convert a Hugging Face OPT, with a text tokenizer, to a model directory."""

from pathlib import Path

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.llama.model_import import component_paths, vocabulary_files
from seed_jax.convert.model_card.facts import ARTEFACTS, origins
from seed_jax.convert.opt.hf_import import ImportedOpt, open_opt
from seed_jax.files import check_vacant


def import_to_model_dir(
    source: str | Path,
    out: str | Path,
    *,
    vocabulary: str | Path | None = None,
    image_tokenizer: str | Path | None = None,
    decoder: str | Path | None = None,
    dtype: str | None = None,
) -> ImportedOpt:
    """Convert a language model, one tensor at a time.

        import_to_model_dir("opt-2.7b", "weights/opt_2b7", dtype="bfloat16")

    Args:
        source: Hugging Face directory.
        out: model directory to write, atomically; must be missing or empty.
        vocabulary: directory of the text tokenizer's files; default: `source`.
        image_tokenizer: model directory of the image tokenizer that belongs to the model.
        decoder: model directory of the image decoder that belongs to the model.
        dtype: float32, bfloat16 or float16; default: as in the files.

    Returns:
        What was imported.

    Raises:
        UserError: the files are damaged, or the model and the text tokenizer do not fit together.
    """
    source, out = Path(source), Path(out)
    check_vacant(out)
    opt = open_opt(source, dtype)
    keys = {"sizes": opt.config.to_dict(), **component_paths(out, image_tokenizer, decoder)}
    files = vocabulary_files(Path(vocabulary or source), opt.config)
    model_dir.save(
        out, ModelKind.OPT, keys, opt.params, files=files, provenance={"from": str(source), ARTEFACTS: origins(source)}
    )
    return opt
