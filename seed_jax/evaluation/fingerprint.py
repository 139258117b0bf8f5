"""Fingerprints of models, so that a result says which weights it belongs to."""

import hashlib
import json
from pathlib import Path
from typing import Any

from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.inference.seed_llama import LoadConfig

_WHOLE = 2**26  # larger files are sampled at three places, so that a fingerprint takes no minutes
_PIECE = 2**20


def describe_model(config: LoadConfig, clip: Path | None = None) -> dict[str, Any]:
    """Return the settings and fingerprints of everything that a resolved `LoadConfig` names, and of a CLIP model."""
    parts = {"language_model": config.model, "image_tokenizer": config.tokenizer, "decoder": config.decoder}
    return {
        **{name: None if path is None else fingerprint(path) for name, path in parts.items()},
        "style": config.style,
        "dtype": config.precision.compute,
        "quantize": config.quantize,
        "quantize_vit": config.quantize_vit,
        "clip": None if clip is None else _clip_fingerprint(clip),
    }


def fingerprint(directory: str | Path) -> str:
    """Return a hash of a model's config.json and parameter files.

    Of files above 64 MiB, size and 3 MiB are hashed; whole files are checked when a model is imported.
    """
    folder, config = model_dir.read_config(directory)
    config.pop("provenance", None)  # says when and from which path the model was imported
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    params = model_dir.params_path(Path(directory)) if config["kind"] != "seed_llama" else folder
    _hash_files(digest, params)
    return digest.hexdigest()[:32]


def _clip_fingerprint(directory: Path) -> str:
    config = directory / "config.json"
    if not config.is_file():
        raise UserError(f"{directory} has no config.json: give the folder of a Hugging Face CLIP model with --clip.")
    digest = hashlib.sha256()
    _hash_files(digest, directory)
    return digest.hexdigest()[:32]


def _hash_files(digest: Any, directory: Path) -> None:
    for path in sorted(file for file in directory.rglob("*") if file.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory)} {size}".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for start in (0, size // 2, size - _PIECE):
                file.seek(start)
                digest.update(file.read(_PIECE))
