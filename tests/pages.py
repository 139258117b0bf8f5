"""The commands of README.md and of the pages in docs/, for tests that run them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def command_lines(page: str, name: str) -> list[str]:
    """Return the lines of a page's fenced block between `<!-- name -->` and `<!-- end -->`."""
    block = (ROOT / page).read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
    return [line for line in block.splitlines() if line and not line.startswith("```")]
