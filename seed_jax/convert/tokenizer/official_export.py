"""Export the image tokenizers under the original's names.

SEED-2: `seed_quantizer`, with the ViT inside or beside it. SEED-1: `causal_qformer` and `seed_tokenizer`, likewise.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.key_table import Entry, to_torch_tensors
from seed_jax.convert.model_card.card import TOKENIZER_MODULE, copy_script, write_export_card
from seed_jax.convert.safetensors_writer import write_lazy_tensors
from seed_jax.convert.tensors import LazyTensor, TensorDict, open_tensors, write_torch
from seed_jax.convert.tokenizer.key_table import (
    VIT,
    image_text_table,
    key_table,
    position_buffers,
    retrieval_table,
    text_branch_table,
    with_path_prefix,
)
from seed_jax.convert.tokenizer.official_import import EXTRAS, with_vit
from seed_jax.errors import UserError
from seed_jax.files import new_directory, write_json
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.models.tokenizer.vit import VitConfig
from seed_jax.precision import as_dtype
from seed_jax.typing import Tree

VitPlace = Literal["inside", "beside", "none"]
SIZES = "seed_tokenizer.json"  # for the PyTorch implementation
QUANTIZER_FILE = "seed_quantizer"
VIT_FILE, STAGE1_FILE, STAGE2_FILE = "eva_vit_g", "causal_qformer", "seed_tokenizer"
# The tensors of SEED-1's stage I file; all others belong to stage II.
_STAGE1_NAMES = re.compile(r"(Qformer|ln_vision|vision_proj|text_proj|itm_head)\..*|query_tokens|temp")
# Formats of the original's files: name -> the key that its state dict is wrapped in.
_WRAPPERS = {STAGE1_FILE: "model", STAGE2_FILE: "model"}


@dataclasses.dataclass(frozen=True)
class OfficialTokenizer:
    """A tokenizer's tensors under official names.

    Args:
        tensors: parameters, what training kept beside them, and extras.
        config: None for a stage I model, which has no codes yet.
        params: tree of lazy arrays; None for a stage I model.
    """

    tensors: TensorDict
    config: SeedTokenizerConfig | None
    params: Tree | None


def export_tokenizer(
    model: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    vit: VitPlace | None = None,
    formats: Sequence[str] = ("safetensors", "pt"),
) -> dict[str, list[Path]]:
    """Export an image tokenizer for the original code, one tensor at a time.

        export_tokenizer("runs/tokenizer", "official", formats=["pt"])
        torch.load("official/seed_quantizer.pt")

    Args:
        model: model directory or training workdir of either stage.
        out: directory to write, atomically; must be missing or empty.
        dtype: float32, bfloat16 or float16.
        vit: write the ViT "inside" the quantizer's file, "beside" it as eva_vit_g, or not at all ("none"); by default
            beside SEED-1's files, as their original code loads them, and inside SEED-2's.
        formats: "safetensors" and "pt", which needs PyTorch.

    Returns:
        format -> paths.

    Raises:
        UserError: the model is not an image tokenizer, or `dtype` cannot represent a value.
    """
    official = open_official(model)
    with new_directory(out) as folder:
        written = _write_files(folder, official, as_dtype(dtype), vit, formats)
        files = {path.stem: path.name for path in written[formats[0]]}
        _write_card(folder, model, official, files, name=Path(out).name, has_vit=vit != "none")
    return {name: [Path(out) / path.name for path in paths] for name, paths in written.items()}


def _write_card(
    folder: Path, model: str | Path, official: OfficialTokenizer, files: dict[str, str], *, name: str, has_vit: bool
) -> None:
    """Write the sizes, the model card and, for a tokenizer of SEED-2's form, its PyTorch implementation.

    Args:
        folder: being written.
        model: that is exported.
        official: its tensors.
        files: stem -> name of the written files of one format, safetensors where there are such.
        name: that the folder gets.
        has_vit: whether the ViT was written.
    """
    config, script = official.config, False
    main = next(file for stem, file in files.items() if stem != VIT_FILE)
    is_safetensors = main.endswith(".safetensors")
    if config is not None:
        write_json(folder / SIZES, config.to_dict())
        script = has_vit and is_safetensors and config.head == "mlp" and not config.predicts_text
    if script:
        copy_script(folder, TOKENIZER_MODULE)
        load = f'from {TOKENIZER_MODULE.removesuffix(".py")} import Tokenizer\n\ntokenizer = Tokenizer(".")'
    elif is_safetensors:
        load = f'from safetensors.torch import load_file\n\nstate = load_file("{main}")'
    else:
        load = f'import torch\n\nstate = torch.load("{main}", weights_only=True)  # for the original code'
    write_export_card(
        folder,
        model,
        title="SEED image tokenizer",
        library="seed-jax",
        pipeline="image-feature-extraction",
        load=load,
        import_arguments=config and _import_arguments(config, files, name, has_vit=has_vit),
        script=script,
    )


def _import_arguments(config: SeedTokenizerConfig, files: dict[str, str], name: str, *, has_vit: bool) -> str:
    """Return the arguments of `seed-jax import` that read exported files."""
    if config.predicts_text:
        arguments = f"tokenizer --seed1 --qformer {name}/{files[STAGE1_FILE]} --codebook {name}/{files[STAGE2_FILE]}"
    else:
        arguments = f"tokenizer --quantizer {name}/{files[QUANTIZER_FILE]}"
    if VIT_FILE in files:
        arguments += f" --vit {name}/{files[VIT_FILE]}"
    elif not has_vit:
        arguments += " --vit eva_vit_g.pth"
    stated, released = _heads(config), _heads(SeedTokenizerConfig())
    return arguments + "".join(f" --{part}-heads {heads}" for part, heads in stated.items() if heads != released[part])


def _heads(config: SeedTokenizerConfig) -> dict[str, int]:
    return {"vit": config.vit.blocks.heads, "qformer": config.qformer.heads, "decoder": config.decoder.heads}


def open_exported(paths: Sequence[Path]) -> TensorDict:
    """Open the files of one format that `export_tokenizer` wrote."""
    vit = [path for path in paths if path.stem == VIT_FILE]
    rest = open_tensors([path for path in paths if path not in vit])
    return with_vit(rest, open_tensors(vit)) if vit else rest


def open_official(directory: str | Path) -> OfficialTokenizer:
    """Open a model directory or workdir of either stage under official names.

    Raises:
        UserError: it is not an image tokenizer, or its parameters do not fit its config.
    """
    model = model_dir.open_lazily(directory)
    if model.kind not in (ModelKind.IMAGE_TOKENIZER, ModelKind.QFORMER):
        raise UserError(
            f"{directory} holds a model of kind {model.kind!r}, expected {str(ModelKind.IMAGE_TOKENIZER)!r} or "
            f"{str(ModelKind.QFORMER)!r}."
        )
    params = model.variables["params"]
    if model.kind == ModelKind.QFORMER:
        stage1 = ImageTextConfig.from_dict(model.config.get("sizes", {}), model.config_path)
        _check_vit(stage1.vit, directory)
        table = image_text_table(stage1)
        return OfficialTokenizer(to_torch_tensors(table, params, str(directory)), None, None)
    config = SeedTokenizerConfig.from_dict(model.config.get("sizes", {}), model.config_path)
    model_dir.check_tree(params, abstract_params(config), str(directory))
    _check_vit(config.vit, directory)
    collections = ("params", "retrieval", "text_branch")
    variables = {name: model.variables[name] for name in collections if name in model.variables}
    table = _variables_table(config, variables, model.config, model.config_path)
    tensors = {
        name: LazyTensor(array.shape, array.dtype, lambda a=array: a)
        for name, array in position_buffers(config).items()
    }
    if (model.directory / EXTRAS).is_file():
        tensors |= open_tensors(model.directory / EXTRAS)
    tensors |= to_torch_tensors(table, variables, str(directory))
    return OfficialTokenizer(TensorDict(tensors, str(directory)), config, params)


def _check_vit(vit: VitConfig, directory: str | Path) -> None:
    if not vit.has_eva_layout:
        raise UserError(
            f"{directory} has a ViT of CLIP's form (pre-norm, no patch bias), as the quickstart's tokenizer has, for "
            "which the official files have no names: only tokenizers with EVA's ViT can be exported."
        )


def _variables_table(
    config: SeedTokenizerConfig, variables: Tree, stored: dict[str, Any], config_path: str
) -> list[Entry]:
    entries = with_path_prefix("params", key_table(config))
    if "retrieval" in variables:
        entries += with_path_prefix("retrieval", retrieval_table())
    if "text_branch" in variables:
        branch = TextBranchConfig.from_dict(stored["text_branch"], f"{config_path}, text_branch,")
        entries += with_path_prefix("text_branch", text_branch_table(branch))
    return entries


def _write_files(
    directory: Path, official: OfficialTokenizer, dtype: np.dtype, vit: VitPlace | None, formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Write safetensors first; PyTorch files are made from them, and they are deleted if not asked for."""
    tensors = official.tensors
    seed1 = official.config is not None and official.config.predicts_text
    vit = vit or ("beside" if seed1 else "inside")

    def file_of(name: str) -> str:
        if official.config is None:
            return STAGE1_FILE
        if seed1:
            return STAGE1_FILE if _STAGE1_NAMES.fullmatch(name) else STAGE2_FILE
        return QUANTIZER_FILE

    files: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(VIT) or vit == "inside":
            files.setdefault(file_of(name), {})[name] = tensor
        elif vit == "beside":
            files.setdefault(VIT_FILE, {})[name.removeprefix(VIT)] = tensor
    wrappers = _WRAPPERS if seed1 else {}
    written: dict[str, list[Path]] = {name: [] for name in formats}
    for name, contents in files.items():
        path = directory / f"{name}.safetensors"
        # Positions stay integers.
        dtypes = {n: t.dtype if np.issubdtype(t.dtype, np.integer) else dtype for n, t in contents.items()}
        write_lazy_tensors(path, contents, dtypes)
        if "pt" in formats:
            suffix = ".pth" if name == VIT_FILE or seed1 else ".pt"
            written["pt"].append(write_torch(path.with_suffix(suffix), path, wrapper=wrappers.get(name)))
        if "safetensors" in formats:
            written["safetensors"].append(path)
        else:
            path.unlink()
    return written
