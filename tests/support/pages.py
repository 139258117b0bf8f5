"""The fenced blocks of README.md and of the pages in docs/, for tests that run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, name: str) -> list[str]:
    """Return what stands in a page's fenced blocks between `<!-- name -->` and `<!-- end -->`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    matches = re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)\n```\n<!-- end -->", text, re.DOTALL)
    assert matches, f"{page} has no block {name!r}"  # a loop over none would test nothing
    return matches


def command_lines(page: str, name: str) -> list[str]:
    """Return the lines of those blocks."""
    return [line for block in blocks(page, name) for line in block.splitlines() if line]
