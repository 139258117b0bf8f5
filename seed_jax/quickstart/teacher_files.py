"""The networks that the quickstart starts from: packed into one file, and unpacked into ordinary model directories.

vision/   the CLIP vision tower of the drawn world (`teacher.vision`)
start/    an image tokenizer with the same encoder and a taught Q-Former, nothing else (`start.init`)
unclip/   a decoder that draws from the vision tower's embeddings (`model.init`)
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from seed_jax.checkpoint import model_dir
from seed_jax.convert.tokenizer.clip import KIND as VISION_KIND
from seed_jax.errors import UserError
from seed_jax.inference.drawing.drawer import drawing_params
from seed_jax.inference.image_tokenizer import KIND as TOKENIZER_KIND
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params

Tree = dict[str, Any]
PACKED = Path(__file__).with_name("world_teacher.safetensors")
_ONLY_IN_CLIP = ("final_norm", "head")


def pack(workdir: Path, out: Path) -> None:
    """Write what the variant `teacher` trained as one file, half precision, and as directories in `out`."""
    reader, painter = model_dir.load(workdir / "reader"), model_dir.load(workdir / "painter")
    trees = {"vision": reader.params["params"], "unclip": drawing_params(painter.params), **reader.params["heads"]}
    kept = {name: trees[name] for name in ("vision", "ln_vision", "qformer", "unclip")}
    tensors = {name: np.asarray(leaf, np.float16) for name, leaf in flatten_dict(kept, sep="/").items()}
    configs = {
        "vision": reader.config["sizes"],
        "tokenizer": reader.config["tokenizer"],
        "unclip": painter.config["sizes"],
    }
    path = workdir / PACKED.name
    save_file(tensors, path, metadata={"configs": json.dumps(configs)})
    path.chmod(0o644)  # it is written for its owner alone, but a package is read by all
    unpack(out, path)


def unpack(out: Path, path: Path = PACKED, *, codes: int | None = None, causal: bool | None = None) -> None:
    """Write the three model directories; those that are there already are kept.

    Args:
        codes: of a picture, for the tokenizer to start from; by default as many as the Q-Former was taught with.
        causal: whether its query i sees no later query; by default as it was taught.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing: train it with --config=configs/quickstart.py:teacher --workdir=T, then add "
            "--config.teacher=T/teacher."
        )
    configs, found = _configs(path), unflatten_dict(load_file(path), sep="/")
    found = jax.tree.map(lambda leaf: leaf.astype(np.float32), found)
    tokenizer = configs["tokenizer"]
    changes = {"num_queries": codes, "causal": causal}
    tokenizer["qformer"] |= {name: value for name, value in changes.items() if value is not None}
    provenance = {"from": path.name, "trained_by": "configs/quickstart.py:teacher"}
    for name, kind, sizes, params in (
        ("vision", VISION_KIND, configs["vision"], found["vision"]),
        ("start", TOKENIZER_KIND, tokenizer, _start(tokenizer, found)),
        ("unclip", "unclip", configs["unclip"], found["unclip"]),
    ):
        if not (out / name).is_dir():
            model_dir.save(out / name, kind, {"sizes": sizes}, params, provenance=provenance)


def _configs(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["configs"])


def _start(sizes: dict[str, Any], found: Tree) -> Tree:
    """Return a tokenizer's parameters, fresh but for its encoder."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key in ("scale", "bias"):
            return np.full(leaf.shape, path[-1].key == "scale", np.float32)
        return 0.02 * rng.standard_normal(leaf.shape, np.float32)

    # Compiling the tokenizer's own `init` would take longer than all the rest, for weights that are trained anyway.
    fresh = jax.tree_util.tree_map_with_path(fill, abstract_params(SeedTokenizerConfig.from_dict(sizes)))
    vit = {name: tree for name, tree in found["vision"].items() if name not in _ONLY_IN_CLIP}
    qformer = {**found["qformer"], "query_tokens": found["qformer"]["query_tokens"][: sizes["qformer"]["num_queries"]]}
    return {**fresh, "vit": vit, "ln_vision": found["ln_vision"], "qformer": qformer}
