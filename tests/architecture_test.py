"""The layout: imports go downwards only, directories hold one concept, heavy packages stay behind one module."""

import ast
import functools
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seed_jax"
# From the ground up. Every package is a separate layer: it imports from itself and from layers below, so that two
# packages never import each other.
LAYERS = [
    "errors",
    "terminal",
    "typing",
    "precision",
    "sizes",
    "files",
    "lfs",
    "startup",
    "images",
    "video",
    "accelerators",
    "distributed",
    "sharding",
    "models",
    "losses",
    "checkpoint",
    "data",
    "hub",
    "convert",
    "inference",
    "demo",
    "evaluation",
    "train",
    "plan",
    "recipes",
    "evaluate",
    "doctor",
    "serving",
    "main",
    "cli",
]
# Third-party package -> where it may be imported; at the top of a file only where the second value is True.
CONFINED = {
    "diffusers": (("models/diffusion/flax_blocks.py", "convert/diffusion/parity.py"), True),
    "skimage": (("demo.py",), False),
    "torch": (("convert",), False),
    "transformers": (("convert",), False),
    "fastapi": (("serving/openai_api", "serving/web", "cli/serve.py"), True),
    "gradio": (("serving/web",), True),
    "starlette": (("serving/openai_api", "serving/web"), True),
    "uvicorn": (("serving/openai_api", "cli/serve.py"), True),
    "prometheus_client": (("serving/openai_api/metrics.py", "cli/serve.py"), True),
}
NEVER = ("tensorflow", "tensorflow_datasets.core.tf_compat")
MOST_ENTRIES = 14
# Registries of like files, which grow by one file per format or command.
REGISTRIES = ("cli", "data/sources", "evaluation/tasks")
MOST_SMALL_FILES = 10
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (module or name, whether at top level) for every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return names


def test_every_package_is_a_layer_and_imports_go_downwards():
    wrong = []
    for path in MODULES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in LAYERS, f"{own} has no place in LAYERS"
        for module, _ in imports(path):
            parts = module.split(".")
            if parts[0] != "seed_jax" or len(parts) < 2 or parts[1].startswith("__"):
                continue
            if parts[1] not in LAYERS[: LAYERS.index(own) + 1]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_recipes_do_not_import_each_other():
    recipes = sorted(path.name for path in (PACKAGE / "recipes").iterdir() if (path / "recipe.py").is_file())
    assert len(recipes) > 1
    for path in (PACKAGE / "recipes").rglob("*.py"):  # nor does what they share import one of them
        others = tuple(f"seed_jax.recipes.{name}." for name in recipes if name != path.parent.name)
        wrong = [module for module, _ in imports(path) if f"{module}.".startswith(others)]
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_no_cycles_between_files():
    modules = {dotted(path): path for path in MODULES}

    def edges(path: Path) -> set[str]:
        targets = set()
        for module, _ in imports(path):
            while module and module not in modules:
                module = module.rpartition(".")[0]
            if module and modules[module] != path:
                targets.add(module)
        # A package's __init__ is imported with every file in it; what it re-exports is not a dependency of theirs.
        return targets

    graph = {name: edges(path) for name, path in modules.items()}
    done, stack = set(), []

    def visit(name: str) -> None:
        assert name not in stack, f"import cycle: {' -> '.join([*stack[stack.index(name) :], name])}"
        if name in done:
            return
        stack.append(name)
        for target in sorted(graph[name]):
            visit(target)
        stack.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def test_directories_hold_one_concept():
    sizes = Counter()
    for directory in {path.parent for path in MODULES}:
        entries = [
            entry
            for entry in directory.iterdir()
            if entry.name not in ("__pycache__", "__init__.py", "__main__.py", "py.typed")
            and (entry.is_file() or any(entry.rglob("*.py")))
        ]
        sizes[str(directory.relative_to(PACKAGE))] = len(entries)
    crowded = {name: size for name, size in sizes.items() if size > MOST_ENTRIES and name not in (".", *REGISTRIES)}
    assert not crowded


def test_few_files_are_fragments():
    small = [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if path.name not in ("__init__.py", "__main__.py") and len(path.read_text(encoding="utf-8").splitlines()) < 30
    ]
    assert len(small) <= MOST_SMALL_FILES, small


@pytest.mark.parametrize("package", [*CONFINED, *NEVER])
def test_confined_packages(package):
    places, at_top = CONFINED.get(package, ((), False))
    for path in MODULES:
        relative = str(path.relative_to(PACKAGE))
        for module, top in imports(path):
            if module == package or module.startswith(f"{package}."):
                assert places, f"{relative} imports {module}"
                assert relative.startswith(places), f"{relative} imports {module}"
                assert at_top or not top, f"{relative} imports {module} at top level"
