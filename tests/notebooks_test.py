"""Every notebook, run from top to bottom on tiny models in a kernel of its own."""

import dataclasses
import os
import re
from pathlib import Path

import jax
import nbclient
import nbformat
import pytest
from flax.core import meta

from seed_jax.checkpoint import model_dir
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.diffusion.cases import random_decoder
from tests.models.tokenizer.cases import random_like
from tests.support import golden, xla_flags

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOKENIZER = SeedTokenizerConfig.tiny()
SIZES = dataclasses.replace(LlamaConfig.tiny(830), max_length=256)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """Return what the notebooks' parameters are set to."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"sizes": TOKENIZER.to_dict()}
    model_dir.save(root / "tokenizer", "seed_tokenizer", sizes, random_like(abstract_params(TOKENIZER)))
    params = meta.unbox(jax.jit(Llama(SIZES).init)(jax.random.key(0), jax.numpy.zeros((1, 2), int)))["params"]
    vocabulary = golden.path("text_tokenizer/tokenizer")
    files = {file.name: file for file in vocabulary.iterdir()}
    model_dir.save(root / "llama", "llama", {"sizes": SIZES.to_dict(), "image_tokenizer": None}, params, files=files)
    unclip, weights = random_decoder(UnclipConfig.tiny(TOKENIZER.embedding_width))
    model_dir.save(root / "decoder", "unclip", {"sizes": unclip.config.to_dict()}, weights)
    paths = {"MODEL": "llama", "TOKENIZER": "tokenizer", "DECODER": "decoder", "OUT": "out", "WORK": "own"}
    return {
        **{name: str(root / path) for name, path in paths.items()},
        "VOCABULARY": str(vocabulary),
        "STEPS": 2,
        "SOURCE": str(ROOT),
    }


def with_values(notebook, values):
    """Set the parameters; a name that no cell has would be a test of nothing."""
    used = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for name, value in values.items():
                changed = re.sub(
                    rf"^{name} = [^#\n]*", lambda _, v=value, n=name: f"{n} = {v!r}  ", cell.source, flags=re.M
                )
                used |= {name} if changed != cell.source else set()
                cell.source = changed
    assert {"SOURCE", "TOKENIZER"} <= used
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, values, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("XLA_FLAGS", xla_flags.flags(1))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = with_values(nbformat.read(path, as_version=4), values)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [key for cell in notebook.cells for out in cell.get("outputs", ()) for key in out.get("data", ())]
    if path.stem != "export":
        assert "image/png" in shown
    else:
        assert "text/markdown" in shown


def test_they_are_stored_without_outputs():
    for path in NOTEBOOKS:
        assert all(not cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells), path.name
