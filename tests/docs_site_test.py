"""The documentation site: it builds without warnings, and the pages name files, modules and layers that exist."""

import importlib
import re
import subprocess
import sys

import pytest

from tests.support.pages import ROOT

PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch/README.md"]
)
PATH = re.compile(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|md|sh|json|safetensors|css|ipynb|yaml))[:`\[]")
DOTTED = re.compile(r"\bseed_jax(?:\.[a-z_]\w*)+(?:\.[A-Z]\w*)?")
OF_USERS = ("runs/", "models/seed", "models/unclip/", "W/", "T/", "drawn/")  # what commands make


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "SeedLlama" in (tmp_path / "api/inference.html").read_text(encoding="utf-8")


def test_every_page_is_reachable_from_the_index():
    """Sphinx warns of pages outside every toctree; this tells it without a build."""
    listed = set()
    for index in (ROOT / "docs").rglob("index.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(encoding="utf-8"), re.DOTALL):
            listed |= {index.parent / f"{line}.md" for line in tree.split() if re.fullmatch(r"[\w/]+", line)}
    assert set((ROOT / "docs").rglob("*.md")) - listed == {ROOT / "docs/index.md"}


def test_reference_pages_name_existing_modules():
    modules = [
        module
        for page in (ROOT / "docs/api").glob("*.md")
        for module in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
    ]
    assert modules
    missing = [
        name
        for name in modules
        if not (ROOT / name.replace(".", "/")).is_dir() and not (ROOT / f"{name.replace('.', '/')}.py").exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_pages_exist(page):
    places = (ROOT, ROOT / "seed_jax", ROOT / "seed_jax/models/tokenizer", page.parent)
    paths = [path for path in PATH.findall(page.read_text(encoding="utf-8")) if not path.startswith(OF_USERS)]
    assert not [path for path in paths if not any(list(place.glob(path)) for place in places)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_dotted_names_in_pages_exist(page):
    missing = []
    for name in DOTTED.findall(page.read_text(encoding="utf-8")):
        module, rest = name, []
        while not ((ROOT / module.replace(".", "/")).is_dir() or (ROOT / f"{module.replace('.', '/')}.py").exists()):
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
        value = importlib.import_module(module) if rest else None
        for attribute in rest:
            value = getattr(value, attribute, None)
        if rest and value is None:
            missing.append(name)
    assert not missing


def first_cells(page: str, marker: str) -> list[str]:
    """Return the code spans in the first column of the table between `<!-- marker -->` and `<!-- end -->`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text[text.index(f"<!-- {marker} -->") : text.index("<!-- end -->")]
    return [name for row in table.splitlines()[3:] for name in re.findall(r"`([\w/.]+)`", row.split("|")[1])]


def test_the_changelog_lists_existing_files():
    files = first_cells("CHANGELOG.md", "layout")
    assert files
    assert not [file for file in files if not (ROOT / "seed_jax" / file).exists()]


def test_the_architecture_page_lists_every_layer():
    named = {name.split("/")[0] for name in first_cells("docs/architecture.md", "layers")}
    layers = {
        entry.name
        for entry in (ROOT / "seed_jax").iterdir()
        if entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))
    } - {"__init__.py"}
    assert named == layers
