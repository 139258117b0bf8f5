"""The pretrained networks of the quickstart: packed into one file, and unpacked into ordinary model directories.

vision/   the CLIP vision tower of the synthetic world (`teacher.vision`)
start/    an image tokenizer with the same encoder and a trained Q-Former, random otherwise (`init_from.model`)
unclip/   a decoder that generates images from the vision tower's embeddings (`model.init`)
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.tokenizer import clip
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.models.clip.text import PromptTokens
from seed_jax.models.diffusion import StableDiffusion, StableDiffusionConfig, UnclipConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.recipes.quickstart.teacher_stage import HEADS
from seed_jax.typing import Tree

PACKED = Path(__file__).with_name("world_teacher.safetensors")
_CLIP_ONLY = ("final_norm", "head")  # parts of a vision tower that a tokenizer's encoder lacks


def pack(workdir: Path, out: Path) -> None:
    """Pack what the variant `teacher` trained.

    Args:
        workdir: the workdir of the variant; the packed file, in half precision, is written into it.
        out: where the model directories are unpacked.
    """
    reader, painter = model_dir.load(workdir / "reader"), model_dir.load(workdir / "painter")
    heads = reader.params[HEADS]
    trees = {
        "vision": reader.params["params"],
        "ln_vision": heads["ln_vision"],
        "qformer": heads["qformer"],
        "unclip": model_dir.decoder_params(painter.params),
    }
    configs = {
        "vision": reader.config["sizes"],
        "tokenizer": reader.config["tokenizer"],
        "unclip": painter.config["sizes"],
    }
    tensors = {name: np.asarray(leaf, np.float16) for name, leaf in flatten_dict(trees, sep="/").items()}
    path = workdir / PACKED.name
    save_file(tensors, path, metadata={"configs": json.dumps(configs)})
    path.chmod(0o644)  # safetensors makes it readable for its owner only, but a package's files are read by all
    unpack(out, path)


def unpack(
    out: Path,
    path: Path = PACKED,
    *,
    codes_per_image: int | None = None,
    causal: bool | None = None,
) -> None:
    """Write the three model directories; existing ones are kept.

    Args:
        out: where to write.
        path: the packed file.
        codes_per_image: of the tokenizer; by default one per query that the Q-Former was trained with.
        causal: whether query i attends to earlier queries only; by default as it was trained.

    Raises:
        UserError: the packed file is missing.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing: train it with --config=configs/quickstart.py:teacher --workdir=T, then add "
            "--config.teacher=T/teacher."
        )
    configs = _read_configs(path)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), unflatten_dict(load_file(path), sep="/"))
    tokenizer = configs["tokenizer"]
    changes = {"num_queries": codes_per_image, "causal": causal}
    tokenizer["qformer"] |= {name: value for name, value in changes.items() if value is not None}
    models = {
        "vision": (ModelKind.CLIP_VISION, configs["vision"], params["vision"]),
        "start": (ModelKind.IMAGE_TOKENIZER, tokenizer, _tokenizer_params(tokenizer, params)),
        "unclip": (ModelKind.UNCLIP, configs["unclip"], params["unclip"]),
    }
    provenance = {"from": path.name, "trained_by": "configs/quickstart.py:teacher"}
    for name, (kind, sizes, tree) in models.items():
        if not (out / name).is_dir():
            model_dir.save(out / name, kind, {"sizes": sizes}, tree, provenance=provenance)


def make_stable_diffusion(out: Path, unclip: Path, text: Path) -> None:
    """Write a Stable Diffusion decoder to train, unless there is one.

    The autoencoder, and whatever of the UNet has the same shape, are the unCLIP decoder's; the text encoder is the one
    that was trained for SEED-1; the attention to its states starts from random weights.

    Args:
        out: model directory to write.
        unclip: model directory of the unCLIP decoder.
        text: workdir of the stage `world_text`.
    """
    if out.is_dir():
        return
    painter, (text_sizes, text_params) = model_dir.load(unclip), clip.import_text(text)
    vocabulary = ClipVocabulary.load(model_dir.read_config(text)[0])
    small = StableDiffusionConfig.small((text_sizes.max_length, text_sizes.hidden_size))
    prompt = PromptTokens(**{name: vocabulary.ids[getattr(vocabulary, name)] for name in ("bos", "eos", "pad")})
    unclip_sizes = UnclipConfig.from_dict(painter.config["sizes"])
    sizes = dataclasses.replace(
        small, vae=unclip_sizes.vae, text=text_sizes, prompt=prompt, noise=unclip_sizes.noise,
        sampler=unclip_sizes.sampler,
    )  # fmt: skip
    shapes = sharding.unbox(jax.eval_shape(StableDiffusion(sizes).unet.init, jax.random.key(0)))
    found: dict[tuple[str, ...], Any] = flatten_dict(painter.params["unet"])
    rng = np.random.default_rng(0)

    def start(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path in found and found[path].shape == leaf.shape:
            return np.asarray(found[path])
        if path[-1] in ("scale", "bias"):
            return np.full(leaf.shape, path[-1] == "scale", np.float32)
        fan_in = int(np.prod(leaf.shape[:-1]))
        # The output of new attention blocks starts at zero, so that the UNet first does what it was trained for.
        scale = 0.0 if "proj_out" in path else fan_in**-0.5
        return scale * rng.standard_normal(leaf.shape, np.float32)

    flat: dict[tuple[str, ...], Any] = flatten_dict(shapes)
    unet = unflatten_dict({path: start(path, leaf) for path, leaf in flat.items()})
    params = {"unet": unet, "vae": painter.params["vae"], "text": text_params}
    with tempfile.TemporaryDirectory() as temporary:
        files = {path.name: path for path in vocabulary.save(temporary)}
        model_dir.save(out, ModelKind.STABLE_DIFFUSION, {"sizes": sizes.to_dict()}, params, files=files)


def _read_configs(path: Path) -> dict[str, Any]:
    """Read the configs from the metadata of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["configs"])


def _tokenizer_params(sizes: dict[str, Any], teacher: Tree) -> Tree:
    """Return the parameters of a tokenizer, random except for its encoder."""
    rng = np.random.default_rng(0)

    def init(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "bias"):
            return np.full(leaf.shape, path[-1].key == "scale", np.float32)
        return 0.02 * rng.standard_normal(leaf.shape, np.float32)

    # Compiling the tokenizer's own `init` takes longer than everything else here, for weights that are trained anyway.
    params = jax.tree_util.tree_map_with_path(init, abstract_params(SeedTokenizerConfig.from_dict(sizes)))
    vit = {name: tree for name, tree in teacher["vision"].items() if name not in _CLIP_ONLY}
    query_tokens = teacher["qformer"]["query_tokens"][: sizes["qformer"]["num_queries"]]
    qformer = {**teacher["qformer"], "query_tokens": query_tokens}
    return {**params, "vit": vit, "ln_vision": teacher["ln_vision"], "qformer": qformer}
