"""Read the unCLIP Stable Diffusion decoder from a diffusers folder, checking every name, shape and setting."""

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.core import meta
from flax.traverse_util import flatten_dict

from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.diffusion import config as configs
from seed_jax.convert.key_table import (
    CONV,
    MATRIX,
    SAME,
    Entry,
    Layout,
    assemble_lazily,
    expected_shapes,
    open_ours,
    widest,
)
from seed_jax.convert.tensors import Tensors, check, open_tensors
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.precision import as_dtype

KIND = "unclip"
# Our part -> folder, and how its weight files are called.
FOLDERS = {
    "unet": ("unet", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
    "normalizer": ("image_normalizer", "diffusion_pytorch_model"),
}
OTHER_FOLDERS = ("tokenizer", "scheduler", "image_noising_scheduler")
TEXT_PREFIX = "text_model."
POSITION_BUFFER = "text_model.embeddings.position_ids"
_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TEXT_NAMES = {
    "token_embedding": "embeddings.token_embedding.weight",
    "position_embedding": "embeddings.position_embedding.weight",
}


@dataclasses.dataclass(frozen=True)
class ImportedUnclip:
    """A decoder read from a diffusers folder, or one whose tensors are read when they are asked for."""

    config: UnclipConfig
    params: dict[str, Any]  # of each part, NumPy or lazy arrays
    vocabulary: ClipVocabulary
    files: dict[str, Tensors]  # of each part


def import_unclip(folder: str | Path, **options) -> ImportedUnclip:
    """Read a diffusers folder into memory; `options` as for `open_unclip`."""
    found = open_unclip(folder, **options)
    return dataclasses.replace(found, params=materialize(found.params))


def open_unclip(folder: str | Path, *, variant: str | None = None, dtype: str | None = None) -> ImportedUnclip:
    """Open a diffusers folder; its image encoder is not needed for drawing and not looked at.

    Args:
        variant: weight files to take where a part has them, e.g. "fp16"; by default the full ones, or the only ones
            there are.
        dtype: number format of the parameters, by default that of the files.
    """
    folder = Path(folder)
    needed = [*(name for name, _ in FOLDERS.values()), *OTHER_FOLDERS]
    if missing := [name for name in needed if not (folder / name).is_dir()]:
        raise UserError(
            f"{folder} is not a whole unCLIP folder: it lacks {', '.join(missing)}; download these sub-folders too."
        )
    if variant is not None and not any(folder.glob(f"*/*.{variant}*")):
        raise UserError(f"{folder} holds no weight files of the variant {variant!r}: download them or leave it out.")
    vocabulary = ClipVocabulary.load(folder / "tokenizer")
    config = read_config(folder, vocabulary)
    params, files = {}, {}
    for part, abstract in abstract_params(config).items():
        table = key_table(part, abstract)
        files[part] = tensors = open_part(folder, part, table, abstract, variant)
        stored = as_dtype(dtype or str(widest(tensor.dtype for tensor in tensors.values())))
        target = jax.tree.map(lambda leaf, to=stored: jax.ShapeDtypeStruct(leaf.shape, to), abstract)
        params[part] = assemble_lazily(table, tensors, target)
        logging.info("%d tensors in %s", len(tensors), tensors.where)
    return ImportedUnclip(config, params, vocabulary, files)


def read_config(folder: Path, vocabulary: ClipVocabulary) -> UnclipConfig:
    """Read the sizes and settings of all sub-folders."""
    sampler, noise = configs.read_scheduler(folder / "scheduler/scheduler_config.json")
    config = UnclipConfig(
        unet=configs.read_unet(folder / "unet/config.json"),
        vae=configs.read_vae(folder / "vae/config.json"),
        text=configs.read_text(folder / "text_encoder/config.json"),
        noise=noise,
        embedding_noise=configs.read_embedding_noise(folder / "image_noising_scheduler/scheduler_config.json"),
        prompt=configs.read_prompt(vocabulary),
        sampler=sampler,
    )
    width = configs.read_json(folder / "image_normalizer/config.json").get("embedding_dim")
    if width != config.embedding_width:
        raise UserError(
            f"{folder}/image_normalizer is for embeddings of width {width}, but the UNet's class projection takes "
            f"2 x {config.embedding_width}: the sub-folders are of different models."
        )
    return config


def abstract_params(config: UnclipConfig) -> dict[str, Any]:
    """Return the parameters as shapes."""
    return meta.unbox(jax.eval_shape(Unclip(config).init, jax.random.key(0)))


def open_part(
    folder: Path, part: str, table: list[Entry], abstract: dict[str, Any], variant: str | None = None
) -> Tensors:
    """Open the weight files of one part: exactly the tensors of the table, under today's names."""
    name, stem = FOLDERS[part]
    tensors = open_tensors(_weight_files(folder / name, stem, variant))
    renamed = {_todays_name(part, key, tensors): tensor for key, tensor in tensors.items()}
    expected = expected_shapes(table, abstract)
    check(expected, Tensors(renamed, tensors.where), ignore=[POSITION_BUFFER])
    return Tensors({key: renamed[key] for key in expected}, tensors.where)


def as_files(params: Mapping[str, Any], where: str) -> dict[str, Tensors]:
    """Return our parameters as diffusers' tensors of each part, each read when it is asked for."""
    return {part: open_ours(key_table(part, tree), tree, where) for part, tree in params.items()}


def _weight_files(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """Find the weights: safetensors before `.bin`, one file or shards, the full ones where the variant is not there."""
    found: dict[str | None, list[Path]] = {}
    stems = (stem, "pytorch_model") if stem == "model" else (stem,)
    for suffix in ("safetensors", "bin"):
        for start in stems:
            pattern = re.compile(rf"{start}(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.{suffix}")
            files: dict[str | None, list[Path]] = {}
            for path in sorted(folder.iterdir()):
                if match := pattern.fullmatch(path.name):
                    files.setdefault(match["variant"], []).append(path)
            for kind, paths in files.items():
                found.setdefault(kind, paths)
    for kind in (variant, None, *sorted(filter(None, found))):
        if kind in found and (kind in (variant, None) or len(found) == 1):
            return found[kind]
    there = f"only the variants {', '.join(map(str, found))}" if found else "none"
    raise UserError(f"{folder} holds no {stem}.safetensors or .bin: download it or name a variant (found: {there}).")


def _todays_name(part: str, name: str, tensors: Tensors) -> str:
    """Map what older and newer releases of the Hugging Face libraries call a tensor to one name."""
    if part == "vae" and (match := re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)):
        return f"{match[1]}.{_VAE_ATTENTION.get(match[2], match[2])}.{match[3]}"
    if part == "text" and not any(key.startswith(TEXT_PREFIX) for key in tensors):
        return TEXT_PREFIX + name  # transformers 5 leaves the prefix out
    return name


def key_table(part: str, abstract: dict[str, Any]) -> list[Entry]:
    """List which of our parameters of a part is which of diffusers'.

    Args:
        abstract: the part's parameters, arrays or shapes.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract, sep="/").items()}
    make = {"unet": _diffusers_entry, "vae": _diffusers_entry, "text": _text_entry, "normalizer": _normalizer_entry}[
        part
    ]
    return [make(path, shape) for path, shape in shapes.items()]


def _normalizer_entry(path: str, shape: tuple[int, ...]) -> Entry:
    return Entry(path, path, Layout(lead=1))


def _diffusers_entry(path: str, shape: tuple[int, ...]) -> Entry:
    *modules, leaf = path.split("/")
    names = [name if name.startswith("linear_") else re.sub(r"_(\d+)$", r".\1", name) for name in modules]
    if "mid_block/attentions_0/" in path:
        names[-1] = _VAE_ATTENTION.get(names[-1], names[-1])  # the UNet's has no such names
    return Entry(path, ".".join([*names, _leaf(leaf)]), {2: MATRIX, 4: CONV}.get(len(shape), SAME))


def _text_entry(path: str, shape: tuple[int, ...]) -> Entry:
    if path in _TEXT_NAMES:
        return Entry(path, TEXT_PREFIX + _TEXT_NAMES[path])
    *modules, leaf = path.split("/")
    if modules[0] != "layers":
        return Entry(path, TEXT_PREFIX + ".".join([*modules, _leaf(leaf)]))
    inner = [f"mlp.{name}" if name in ("fc1", "fc2") else name for name in modules[1:]]
    name = TEXT_PREFIX + ".".join(["encoder.layers.{}", *inner, _leaf(leaf)])
    return Entry(path, name, MATRIX if leaf == "kernel" else SAME, range(shape[0]))


def _leaf(name: str) -> str:
    return name if name == "bias" else "weight"
