"""Import the unCLIP Stable Diffusion decoder from a diffusers folder, checking every name, shape and setting."""

import dataclasses
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.diffusion import folder_config
from seed_jax.convert.key_table import (
    CONV,
    IDENTITY,
    LINEAR,
    Entry,
    Layout,
    assemble_lazily,
    expected_shapes,
    promoted_dtype,
    to_torch_tensors,
)
from seed_jax.convert.model_card.facts import ARTEFACTS, origins
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import TensorDict, check_tensors, open_tensors
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.files import check_vacant, read_json
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.precision import as_dtype
from seed_jax.typing import Tree

# Our part -> subfolder, and the stem of its weight files.
WEIGHT_FOLDERS = {
    "unet": ("unet", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
    "normalizer": ("image_normalizer", "diffusion_pytorch_model"),
}
# The parts of the PyTorch pipeline that encode images. Drawing from embeddings does not use them, but the pipeline
# cannot run without them: an import keeps them for the export.
IMAGE_SIDE = ("image_encoder", "feature_extractor")
OTHER_FOLDERS = ("tokenizer", "scheduler", "image_noising_scheduler")
_SMALL_EMBEDDING_WIDTH = 768  # of stable-diffusion-2-1-unclip-small
TEXT_PREFIX = "text_model."
POSITION_BUFFER = "text_model.embeddings.position_ids"
_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TEXT_NAMES = {
    "token_embedding": "embeddings.token_embedding.weight",
    "position_embedding": "embeddings.position_embedding.weight",
}


@dataclasses.dataclass(frozen=True)
class ImportedUnclip:
    """A decoder read from a diffusers folder.

    Args:
        params: part -> tree of NumPy or lazy arrays.
        vocabulary: of the text encoder.
        files: part -> what its weight files hold.
    """

    config: UnclipConfig
    params: Tree
    vocabulary: ClipVocabulary
    files: dict[str, TensorDict]


def import_to_model_dir(
    folder: str | Path, out: str | Path, *, variant: str | None = None, dtype: str | None = None
) -> UnclipConfig:
    """Convert a diffusers folder to a model directory, one tensor at a time.

    The image encoder and feature extractor are kept in subfolders, for the export.

        import_to_model_dir("stable-diffusion-2-1-unclip", "weights/unclip", dtype="bfloat16")

    Args:
        folder, variant, dtype: as for `open_unclip`.
        out: model directory to write, atomically; must be missing or empty.

    Returns:
        The config of the decoder.

    Raises:
        UserError: the folder is incomplete, damaged, or has settings that are not supported.
    """
    check_vacant(Path(out))
    unclip = open_unclip(folder, variant=variant, dtype=dtype)
    provenance = {"from": str(folder), "variant": variant, ARTEFACTS: origins(folder)}
    keys = {"sizes": unclip.config.to_dict()}
    with tempfile.TemporaryDirectory() as temporary:
        files = {path.name: path for path in unclip.vocabulary.save(temporary)} | _image_side_files(
            Path(folder), variant
        )
        model_dir.save(out, ModelKind.UNCLIP, keys, unclip.params, files=files, provenance=provenance)
    return unclip.config


def _image_side_files(folder: Path, variant: str | None) -> dict[str, Path | Callable[[Path], Any]]:
    """Return the image encoder's and feature extractor's files for `model_dir.save`; empty if the folder lacks them."""
    if not all((folder / name).is_dir() for name in IMAGE_SIDE):
        logging.info("%s has no image encoder: the export to PyTorch will need one (--image-encoder).", folder)
        return {}
    files: dict[str, Path | Callable[[Path], Any]] = {
        f"{name}/{path.name}": path for name in IMAGE_SIDE for path in sorted((folder / name).glob("*.json"))
    }
    files = {name: path for name, path in files.items() if not name.endswith(".index.json")}
    tensors = open_tensors(_weight_files(folder / "image_encoder", "model", variant))
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    files["image_encoder/model.safetensors"] = lambda path: write_lazy_tensors(path, tensors, dtypes)
    return files


def import_unclip(folder: str | Path, *, variant: str | None = None, dtype: str | None = None) -> ImportedUnclip:
    """Read a diffusers folder into NumPy arrays; see `open_unclip`."""
    unclip = open_unclip(folder, variant=variant, dtype=dtype)
    return dataclasses.replace(unclip, params=materialize(unclip.params))


def open_unclip(folder: str | Path, *, variant: str | None = None, dtype: str | None = None) -> ImportedUnclip:
    """Open a diffusers folder; weights are read when their lazy arrays are indexed.

    The image encoder is not opened: drawing starts from an embedding.

    Args:
        folder: with the subfolders unet, vae, text_encoder, tokenizer, image_normalizer and the two schedulers.
        variant: of the weight files, e.g. "fp16", for the parts that have it; default: files without a variant, or the
            only variant.
        dtype: of the parameters; default: that of each part's files.

    Raises:
        UserError: the folder is incomplete, damaged, or has settings that are not supported.
    """
    folder = Path(folder)
    needed = [*(name for name, _ in WEIGHT_FOLDERS.values()), *OTHER_FOLDERS]
    if missing := [name for name in needed if not (folder / name).is_dir()]:
        raise UserError(
            f"{folder} is not a complete unCLIP folder: it lacks {', '.join(missing)}; download these subfolders too."
        )
    if variant is not None and not any(folder.glob(f"*/*.{variant}*")):
        raise UserError(f"{folder} holds no weight files of the variant {variant!r}: download them or omit --variant.")
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
        logging.info("%d tensors in %s", len(tensors), tensors.source)
    return ImportedUnclip(config, params, vocabulary, files)


def read_config(folder: Path, vocabulary: ClipVocabulary) -> UnclipConfig:
    """Read the configs of all subfolders."""
    width = read_json(folder / "image_normalizer/config.json").get("embedding_dim")
    if width == _SMALL_EMBEDDING_WIDTH:
        raise UserError(
            f"{folder} is the small decoder, for CLIP ViT-L/14's image embeddings of width {width}; SEED's embeddings "
            "have width 1024: download stable-diffusion-2-1-unclip instead of stable-diffusion-2-1-unclip-small."
        )
    sampler, noise = folder_config.read_scheduler(folder / "scheduler/scheduler_config.json")
    config = UnclipConfig(
        unet=folder_config.read_unet(folder / "unet/config.json"),
        vae=folder_config.read_vae(folder / "vae/config.json"),
        text=folder_config.read_text(folder / "text_encoder/config.json"),
        noise=noise,
        embedding_noise=folder_config.read_embedding_noise(folder / "image_noising_scheduler/scheduler_config.json"),
        prompt=folder_config.read_prompt(vocabulary),
        sampler=sampler,
    )
    if width != config.embedding_width:
        raise UserError(
            f"{folder}/image_normalizer is for embeddings of width {width}, but the UNet's class projection takes "
            f"2 x {config.embedding_width}: the subfolders are of different models."
        )
    return config


def abstract_params(config: UnclipConfig) -> Tree:
    """Return the parameters of each part as abstract arrays."""
    return sharding.unbox(Unclip(config).abstract_params())


def open_part(folder: Path, part: str, table: list[Entry], abstract: Tree, variant: str | None = None) -> TensorDict:
    """Open the weight files of one part.

    Args:
        part: a key of WEIGHT_FOLDERS.
        table, abstract: the part's key table and abstract parameters.

    Returns:
        Exactly the tensors of the table, under the names that current releases of diffusers and transformers use.
    """
    name, stem = WEIGHT_FOLDERS[part]
    tensors = open_tensors(_weight_files(folder / name, stem, variant))
    renamed = {_current_name(part, key, tensors): tensor for key, tensor in tensors.items()}
    expected = expected_shapes(table, abstract)
    check_tensors(expected, TensorDict(renamed, tensors.source), ignore=[POSITION_BUFFER])
    return TensorDict({key: renamed[key] for key in expected}, tensors.source)


def to_diffusers_tensors(params: Mapping[str, Any], source: str) -> dict[str, TensorDict]:
    """Return our parameters as diffusers' tensors, by part.

    Args:
        params: part -> tree of arrays or lazy arrays.
        source: what to call their origin in messages.
    """
    return {part: to_torch_tensors(key_table(part, tree), tree, source) for part, tree in params.items()}


def _weight_files(folder: Path, stem: str, variant: str | None) -> list[Path]:
    """Find one file or its shards: safetensors before `.bin`, files without a variant where the variant is missing."""
    by_variant: dict[str | None, list[Path]] = {}
    stems = (stem, "pytorch_model") if stem == "model" else (stem,)
    for suffix in ("safetensors", "bin"):
        for start in stems:
            pattern = re.compile(rf"{start}(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.{suffix}")
            files: dict[str | None, list[Path]] = {}
            for path in sorted(folder.iterdir()):
                if match := pattern.fullmatch(path.name):
                    files.setdefault(match["variant"], []).append(path)
            for name, paths in files.items():
                by_variant.setdefault(name, paths)
    for name in (variant, None, *sorted(filter(None, by_variant))):
        if name in by_variant and (name in (variant, None) or len(by_variant) == 1):
            return by_variant[name]
    present = f"only the variants {', '.join(map(str, by_variant))}" if by_variant else "none"
    raise UserError(f"{folder} holds no {stem}.safetensors or .bin: download it or name a variant (found: {present}).")


def _current_name(part: str, name: str, tensors: TensorDict) -> str:
    """Map the names of older and newer releases of the Hugging Face libraries to one name."""
    if part == "vae" and (match := re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", name)):
        return f"{match[1]}.{_VAE_ATTENTION.get(match[2], match[2])}.{match[3]}"
    if part == "text" and not any(key.startswith(TEXT_PREFIX) for key in tensors):
        return TEXT_PREFIX + name  # transformers 5 omits the prefix
    return name


def key_table(part: str, abstract: Mapping[str, Any]) -> list[Entry]:
    """Return an entry for every parameter of a part.

    Args:
        part: a key of WEIGHT_FOLDERS.
        abstract: the part's parameters, arrays or abstract arrays.
    """
    flat: dict[str, Any] = flatten_dict(dict(abstract), sep="/")
    make = {"unet": _diffusers_entry, "vae": _diffusers_entry, "text": _text_entry, "normalizer": _normalizer_entry}[
        part
    ]
    return [make(path, tuple(leaf.shape)) for path, leaf in flat.items()]


def _normalizer_entry(path: str, shape: tuple[int, ...]) -> Entry:
    return Entry(path, path, Layout(lead=1))


def _diffusers_entry(path: str, shape: tuple[int, ...]) -> Entry:
    *modules, leaf = path.split("/")
    names = [name if name.startswith("linear_") else re.sub(r"_(\d+)$", r".\1", name) for name in modules]
    if "mid_block/attentions_0/" in path:
        names[-1] = _VAE_ATTENTION.get(names[-1], names[-1])  # the UNet's attention has no such names
    return Entry(path, ".".join([*names, _torch_leaf(leaf)]), {2: LINEAR, 4: CONV}.get(len(shape), IDENTITY))


def _text_entry(path: str, shape: tuple[int, ...]) -> Entry:
    if path in _TEXT_NAMES:
        return Entry(path, TEXT_PREFIX + _TEXT_NAMES[path])
    *modules, leaf = path.split("/")
    if modules[0] != "layers":
        return Entry(path, TEXT_PREFIX + ".".join([*modules, _torch_leaf(leaf)]))
    inner = [f"mlp.{name}" if name in ("fc1", "fc2") else name for name in modules[1:]]
    name = TEXT_PREFIX + ".".join(["encoder.layers.{}", *inner, _torch_leaf(leaf)])
    return Entry(path, name, LINEAR if leaf == "kernel" else IDENTITY, range(shape[0]))


def _torch_leaf(name: str) -> str:
    return name if name == "bias" else "weight"
