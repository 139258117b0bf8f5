"""Write the image tokenizer under the original's names: `seed_quantizer`, and the image encoder inside or beside it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.convert.key_table import Entry, open_ours
from seed_jax.convert.safetensors_writer import write_safetensors
from seed_jax.convert.tensors import Tensor, Tensors, natural, open_tensors, write_torch
from seed_jax.convert.tokenizer.key_table import (
    VIT,
    below,
    buffers,
    image_text_table,
    key_table,
    retrieval_table,
    text_branch_table,
)
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.models.tokenizer.text_branch import TextBranchConfig

KIND, STAGE1_KIND = "seed_tokenizer", "seed_qformer"
EXTRAS = "extras.safetensors"  # of a model directory: what `seed-jax import tokenizer` set aside
FORMATS = ("safetensors", "pt")


@dataclasses.dataclass(frozen=True)
class OfficialTokenizer:
    """A tokenizer's tensors under official names, read when they are asked for.

    `config` and `params` (lazy arrays) are None for a model of stage I, which has no codes yet.
    """

    tensors: Tensors
    config: SeedTokenizerConfig | None
    params: dict[str, Any] | None


def open_official(directory: str | Path) -> OfficialTokenizer:
    """Open a model directory or workdir of either stage: parameters, what training kept beside them, and extras."""
    found = model_dir.open_lazily(directory)
    if found.kind not in (KIND, STAGE1_KIND):
        raise UserError(f"{directory} holds a model of kind {found.kind!r}, expected {KIND!r} or {STAGE1_KIND!r}.")
    where = str(found.directory / model_dir.CONFIG)
    variables = found.params if "params" in found.params else {"params": found.params}
    if found.kind == STAGE1_KIND:
        config = ImageTextConfig.from_dict(found.config["sizes"], where)
        return OfficialTokenizer(open_ours(image_text_table(config), variables["params"], str(directory)), None, None)
    config = SeedTokenizerConfig.from_dict(found.config.get("sizes", {}), where)
    model_dir.check_tree(variables["params"], abstract_params(config), str(directory))
    kept = {name: variables[name] for name in ("params", "retrieval", "text_branch") if name in variables}
    ours = open_ours(_table(config, kept, found.config, where), kept, str(directory))
    constants = {name: Tensor(array.shape, array.dtype, lambda a=array: a) for name, array in buffers(config).items()}
    aside = found.directory / EXTRAS
    extras = open_tensors(aside) if aside.is_file() else {}
    everything = {**constants, **extras, **ours}
    return OfficialTokenizer(Tensors(everything, str(directory)), config, variables["params"])


def _table(config: SeedTokenizerConfig, kept: dict[str, Any], stored: dict[str, Any], where: str) -> list[Entry]:
    entries = below("params", key_table(config))
    if "retrieval" in kept:
        entries += below("retrieval", retrieval_table())
    if "text_branch" in kept:
        branch = TextBranchConfig.from_dict(stored["text_branch"], f"{where}, text_branch,")
        entries += below("text_branch", text_branch_table(branch))
    return entries


def write_tokenizer(
    directory: Path,
    official: OfficialTokenizer,
    dtype: np.dtype,
    *,
    vit: str = "inside",
    formats: tuple[str, ...] = FORMATS,
) -> dict[str, list[Path]]:
    """Write official files into an empty folder, a tensor at a time; return them by format, the quantizer's first.

    Args:
        dtype: of floating tensors; positions stay whole numbers.
        vit: "inside" the quantizer's file, "beside" it as eva_vit_g, or "none".
        formats: "safetensors" and "pt" (PyTorch's, made from the former, which is removed if it is not asked for).
    """
    stem = "seed_quantizer" if official.config is not None else "causal_qformer"
    files = {stem: {name: name for name in official.tensors if vit == "inside" or not name.startswith(VIT)}}
    if vit == "beside":
        files["eva_vit_g"] = {name.removeprefix(VIT): name for name in official.tensors if name.startswith(VIT)}
    written = {kind: [] for kind in formats}
    for name, names in files.items():
        path = directory / f"{name}.safetensors"
        _write(path, {theirs: official.tensors[ours] for theirs, ours in names.items()}, dtype)
        if "pt" in formats:
            written["pt"].append(write_torch(path.with_suffix(".pth" if name == "eva_vit_g" else ".pt"), path))
        if "safetensors" in formats:
            written["safetensors"].append(path)
        else:
            path.unlink()
    return written


def _write(path: Path, tensors: dict[str, Tensor], dtype: np.dtype) -> None:
    names = sorted(tensors, key=natural)
    shapes = {name: tensors[name].shape for name in names}
    whole = {name: np.issubdtype(tensors[name].dtype, np.integer) for name in names}
    dtypes = {name: tensors[name].dtype if whole[name] else dtype for name in names}
    write_safetensors(path, shapes, dtypes, ((name, tensors[name].read()) for name in names))
