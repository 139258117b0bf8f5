"""Commands in README.md and docs/: each is at least parsed; other tests run those that need no weights."""

import re
import shlex

import pytest

from seed_jax import cli
from seed_jax.train.config import load_config
from tests.support.pages import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINES = [
    line.split("  #")[0].removeprefix(".venv/bin/")
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)\n```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = dict.fromkeys(line for line in LINES if line.startswith("seed-jax "))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_the_options_that_it_is_shown_with(line):
    _, command, *arguments = shlex.split(line)
    args = cli.build_parser(command).parse_args([command, *arguments])
    assert callable(args.run)


def test_the_table_names_every_command():
    assert {name for name in cli.COMMANDS if f"seed-jax {name}" not in TEXT} == set()


def test_training_commands_name_packaged_configs():
    lines = [line for line in LINES if "-m seed_jax.main" in line]
    assert lines
    for line in lines:
        config = load_config(re.search(r"--config=(\S+)", line)[1])
        for key, _ in re.findall(r"--config\.([\w.]+)=(\S+)", line):
            group = config
            for part in key.split("."):
                group = group[part]
