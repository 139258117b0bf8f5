"""The house: imports go downwards only, and heavy or optional packages stay in their rooms."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seed_jax"
# Floor of each room; a module imports from its own room and from lower floors.
FLOORS = {
    "errors": 0,
    "precision": 0,
    "images": 0,
    "accelerators": 0,
    "models": 1,
    "distributed": 2,
    "sharding": 2,
    "losses": 2,
    "tokenizer_losses": 2,
    "data": 3,
    "checkpoint": 3,
    "convert": 3,
    "inference": 4,
    "train": 5,
    "evaluation": 5,
    "serving": 5,
    "plan": 5,
    "main": 6,
    "cli": 6,
}
# Where a package may be imported; inside functions anywhere else it would be loaded late, at top level nowhere.
ROOMS_OF = {
    "diffusers": ("models/unclip", "convert/unclip_parity"),
    "skimage": ("train",),
    "torch": ("convert",),
    "transformers": ("convert",),
}
NEVER = ("tensorflow", "tensorflow_datasets.core.tf_compat")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> list[tuple[str, bool]]:
    """Return (module, whether at top level) for every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name, id(node) in top) for name in names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module, _ in imported(path):
        if not module.startswith("seed_jax.") or room(module) == "__version__":
            continue
        other = room(module)
        assert other in FLOORS, f"{relative} imports {module}: give its room a floor"
        assert other == own or FLOORS[other] <= FLOORS[own], f"{relative} imports {module} from a higher floor"
        if own == "models":
            assert other == "models" or FLOORS[other] == 0


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_stay_in_their_rooms(path):
    relative = str(path.relative_to(PACKAGE))
    for module, top in imported(path):
        name = module.split(".")[0]
        assert name not in NEVER
        if name in ROOMS_OF:
            assert relative.startswith(ROOMS_OF[name]), f"{relative} imports {name}"
            assert not top or name == "diffusers", f"{relative} imports {name} at top level"
