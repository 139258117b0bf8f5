"""Import Stable Diffusion 1 from a diffusers folder, as SEED-1's decoder; its parts are read as those of unCLIP."""

import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import Any

import jax

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.diffusion import folder_config
from seed_jax.convert.diffusion.diffusers_import import WEIGHT_FOLDERS, key_table, open_part
from seed_jax.convert.key_table import assemble_lazily, promoted_dtype
from seed_jax.convert.tensors import TensorDict
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.files import read_json
from seed_jax.models.diffusion import StableDiffusion, StableDiffusionConfig
from seed_jax.precision import as_dtype
from seed_jax.typing import Tree

PARTS = ("unet", "vae", "text")
_REMEDY = "give a complete diffusers folder of Stable Diffusion 1.4"


@dataclasses.dataclass(frozen=True)
class ImportedStableDiffusion:
    """A decoder read from a diffusers folder.

    Args:
        config: sizes.
        params: part -> tree of NumPy or lazy arrays.
        vocabulary: of the text encoder; None where the source has none (a single-file checkpoint).
        files: part -> what the weight files hold, under diffusers' names.
    """

    config: StableDiffusionConfig
    params: Tree
    vocabulary: ClipVocabulary | None
    files: dict[str, TensorDict]


def save_model_dir(decoder: ImportedStableDiffusion, out: str | Path, provenance: dict[str, Any]) -> None:
    """Write an opened decoder as a model directory, one tensor at a time and atomically.

    Args:
        decoder: what was opened.
        out: directory to write; must be missing or empty.
        provenance: where it comes from, for `config.json`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        files = {}
        if decoder.vocabulary is not None:
            files = {path.name: path for path in decoder.vocabulary.save(temporary)}
        keys = {"sizes": decoder.config.to_dict()}
        model_dir.save(out, ModelKind.STABLE_DIFFUSION, keys, decoder.params, files=files, provenance=provenance)


def import_stable_diffusion(
    folder: str | Path, *, variant: str | None = None, dtype: str | None = None
) -> ImportedStableDiffusion:
    """Read a diffusers folder into NumPy arrays; see `open_stable_diffusion`."""
    decoder = open_stable_diffusion(folder, variant=variant, dtype=dtype)
    return dataclasses.replace(decoder, params=materialize(decoder.params))


def open_stable_diffusion(
    folder: str | Path, *, variant: str | None = None, dtype: str | None = None
) -> ImportedStableDiffusion:
    """Open a diffusers folder; weights are read when their lazy arrays are indexed.

    The safety checker is not read.

    Args:
        folder: with the subfolders unet, vae, text_encoder, tokenizer and scheduler.
        variant: of the weight files, e.g. "fp16"; default: files without a variant, or the only variant.
        dtype: of the parameters; default: that of each part's files.

    Raises:
        UserError: the folder is incomplete, damaged, of unCLIP, or has settings that are not supported.
    """
    folder = Path(folder)
    needed = [*(WEIGHT_FOLDERS[part][0] for part in PARTS), "tokenizer", "scheduler"]
    if missing := [name for name in needed if not (folder / name).is_dir()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}: {_REMEDY}.")
    if (folder / "image_normalizer").is_dir():
        raise UserError(f"{folder} holds an unCLIP decoder (SEED-2's): import it with `seed-jax import unclip`.")
    vocabulary = ClipVocabulary.load(folder / "tokenizer")
    config = read_config(folder, vocabulary)
    params: Tree = {}
    files: dict[str, TensorDict] = {}
    for part, abstract in abstract_params(config).items():
        table = key_table(part, abstract)
        files[part] = tensors = open_part(folder, part, table, abstract, variant)
        stored = as_dtype(dtype or str(promoted_dtype(tensor.dtype for tensor in tensors.values())))
        target = jax.tree.map(lambda leaf, to=stored: jax.ShapeDtypeStruct(leaf.shape, to), abstract)
        params[part] = assemble_lazily(table, tensors, target)
    return ImportedStableDiffusion(config, params, vocabulary, files)


def read_config(folder: Path, vocabulary: ClipVocabulary) -> StableDiffusionConfig:
    """Read the configs of all subfolders; say which release of Stable Diffusion it is where it is not version 1."""
    sampler, noise = folder_config.read_scheduler(folder / "scheduler/scheduler_config.json")
    unet = read_json(folder / "unet/config.json", _REMEDY)
    width, name = unet.get("cross_attention_dim"), str(unet.get("_name_or_path") or "")
    if width != 768:
        release = "2" if width == 1024 else "another release"
        logging.warning(
            "%s is of Stable Diffusion %s (text states of width %s): SEED-1's embeddings have width 768 and do not "
            "fit it.", folder, release, width,
        )  # fmt: skip
    elif "diffusion-v1" in name and "v1-4" not in name:
        logging.warning(
            "%s says that it is %s: it fits, but SEED-1 was made with Stable Diffusion 1.4, whose images differ.",
            folder, name,
        )  # fmt: skip
    return StableDiffusionConfig(
        unet=folder_config.read_unet(folder / "unet/config.json", class_labels=False),
        vae=folder_config.read_vae(folder / "vae/config.json"),
        text=folder_config.read_text(folder / "text_encoder/config.json"),
        noise=noise,
        prompt=folder_config.read_prompt(vocabulary),
        sampler=sampler,
    )


def abstract_params(config: StableDiffusionConfig) -> Tree:
    """Return the parameters of each part as abstract arrays."""
    return sharding.unbox(StableDiffusion(config).abstract_params())
