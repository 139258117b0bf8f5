"""Every notebook, run from top to bottom at the smallest size, with the package installed from a wheel.

Each runs in a directory that holds nothing but the notebook; the miniature that the first one trains is used by the
others, whose `MODELS` names it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbclient
import nbformat
import pytest

from seed_jax import cli
from tests.support import xla_flags

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = "seed_jax_wheel"
MOST_BYTES = 2_000_000  # of a notebook with its outputs


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of the files that git knows, so that the checkout stays as it is."""
    place = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if name.split("/")[0] in ("seed_jax", "configs") or "/" not in name:
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / "source" / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        "dist",
        "./source",
    ]
    subprocess.run(command, cwd=place, check=True)
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def kernel(wheel, tmp_path_factory) -> Path:
    """Make a kernel in an environment that has this one's packages, but seed_jax from the wheel."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place / "venv", with_pip=False)
    python = place / "venv/bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # As text in a .pth file, the directory is searched last and its own .pth files (a checkout) are not read.
    Path(site, "this_environment.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-q", "--no-index", wheel], check=True
    )
    specification = place / "jupyter/kernels" / KERNEL
    specification.mkdir(parents=True)
    arguments = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (specification / "kernel.json").write_text(json.dumps({"argv": arguments, "display_name": KERNEL}))
    return place / "jupyter"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, kernel, models, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("JUPYTER_PATH", str(kernel))
    monkeypatch.setenv("XLA_FLAGS", xla_flags.flags(1))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    shutil.copy(path, tmp_path)
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in {"SIZE": "shortest", "MODELS": str(models)}.items():
        setup.source, count = re.subn(rf'^{name} = "[^"]*"', f"{name} = {value!r}", setup.source, flags=re.M)
        assert count == 1, name
    setup.source += "\nimport seed_jax\nassert 'site-packages' in seed_jax.__file__, seed_jax.__file__"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1500, kernel_name=KERNEL, resources=resources).execute()
    if out := os.environ.get("SEED_JAX_NOTEBOOK_OUTPUTS"):  # to look at what was shown
        nbformat.write(notebook, Path(out) / path.name)
    shown = [key for cell in notebook.cells for out in cell.get("outputs", ()) for key in out.get("data", ())]
    assert ("text/markdown" if path.stem == "export" else "image/png") in shown


def test_they_begin_alike():
    """Installation, devices and models are the same cells everywhere, but for the extras."""
    assert len(NOTEBOOKS) == 5
    first = [[re.sub('EXTRAS = ".*"', "", cell.source) for cell in cells(path)[:2]] for path in NOTEBOOKS]
    assert all(pair == first[0] for pair in first)
    for path in NOTEBOOKS:
        assert sum("pip" in cell.source for cell in cells(path)) == 1


def test_commands_and_options_exist():
    """The commands that cells run, and the options in the same cells, are those of the command line."""
    commands = set()
    for path in NOTEBOOKS:
        for cell in cells(path):
            named = re.findall(r'"seed_jax\.cli",\s*"(\w+)"', cell.source)
            if not named and '"seed_jax.cli", *' in cell.source:
                named = re.findall(r'command = \["(\w+)"', cell.source)
            commands |= set(named)
            known = {option for name in named for option in options_of(name)}
            if named:
                used = set(re.findall(r'"(--[a-z][a-z-]*)"', cell.source))
                assert used <= known, (path.name, used - known)
    assert {"fetch", "doctor", "data", "eval", "export"} <= commands <= set(cli.COMMANDS)


def options_of(command: str) -> set[str]:
    """Return the options of a command and of its subcommands."""
    parsers, options = [cli.build_parser(command)], set()
    while parsers:
        for action in parsers.pop()._actions:
            options |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return options


def test_outputs_are_kept():
    for path in NOTEBOOKS:
        assert path.stat().st_size < MOST_BYTES
        executed = [cell for cell in cells(path) if cell.execution_count]
        assert len(executed) == len(cells(path)), path.name
        assert not any(out.output_type == "error" for cell in executed for out in cell.outputs)
        assert not re.search(r"/(tmp|work|root|home)/", path.read_text(encoding="utf-8")), path.name
