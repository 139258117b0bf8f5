"""Sphinx: the pages of this directory (MyST) and the API reference, from docstrings (autodoc, napoleon).

Build with `sphinx-build -W --keep-going -b html docs docs/_build/html` (extra `docs`).
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # autodoc imports the package

from seed_jax import __version__  # noqa: E402

project = "seed_jax"
author = "The seed_jax authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = "seed_jax"
html_static_path = []
html_show_copyright = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Links out of docs/ to files of the repository, such as launch/README.md, stay links to files.
myst_all_links_external = False

default_role = "code"  # docstrings write code in single backticks, as Markdown does
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # `key=jax.random.key(0)` and not the array
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
# Shapes in annotations, such as Float[Array, "N {image_size}"], name dimensions, which Sphinx takes for references.
suppress_warnings = ["ref.python"]

# Fields of every Flax module, not of the model it describes.
_FLAX_FIELDS = ("name", "parent", "scope")
_CODE = re.compile(r"(``(?:[^`]|`(?!`))+``|`[^`]+`)")
_MARKUP = re.compile(r"[*|]|(?<=\w)_(?!\w)")
_ARGUMENT = re.compile(r"^\s+\*{1,2}\w+:")  # napoleon escapes these itself


def _skip(app, what, name, obj, skip, options):
    return True if what == "class" and name in _FLAX_FIELDS else skip


def _to_rst(app, what, name, obj, options, lines):
    """Turn what docstrings take from Markdown into reStructuredText: tables, examples, and literal `*`, `|`, `_`."""
    converted, table, literal = [], [], None  # literal: indentation of the line that begins a literal block
    for line in [*_escaped("\n".join(lines)).split("\n"), ""]:
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if table and not stripped.startswith("\\|"):
            converted += _list_table(table)
            table = []
        if literal is not None and stripped and indent <= literal:
            literal = None
        if literal is not None:
            converted.append(_unescaped(line))
        elif stripped.startswith("\\|") and stripped.endswith("\\|"):
            table.append(line)
        elif stripped in ("Example:", "Examples:") or stripped.endswith("::"):
            converted += [line if stripped.endswith("::") else f"{line}:", ""]
            literal = indent
        else:
            converted.append(_unescaped(line) if _ARGUMENT.match(_unescaped(line)) else line)
    lines[:] = converted


def _escaped(text):
    """Escape what reStructuredText would read as markup outside code spans, which may go over a line's end."""
    parts = _CODE.split(text)
    rest = [re.sub(r"^(?=\w)", r"\\ ", part) if i else part for i, part in enumerate(parts[::2])]  # `Request`s
    rest = [_MARKUP.sub(r"\\\g<0>", part) for part in rest]
    return "".join(part for pair in zip(rest, [*parts[1::2], ""], strict=True) for part in pair)


def _unescaped(text):
    return re.sub(r"\\([*|_])", r"\1", text)


def _list_table(rows):
    indent = rows[0][: len(rows[0]) - len(rows[0].lstrip())]
    cells = [
        [cell.strip() for cell in row.strip().removeprefix("\\|").removesuffix("\\|").split("\\|")] for row in rows
    ]
    converted = ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in cells:
        if not all(re.fullmatch(r":?-+:?", cell) for cell in row):
            converted += [f"{indent}   {'  -' if i else '* -'} {cell}" for i, cell in enumerate(row)]
    return [*converted, ""]


def setup(app) -> None:
    """Register what autodoc leaves out and converts."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _to_rst, priority=400)  # before napoleon, which has 500
