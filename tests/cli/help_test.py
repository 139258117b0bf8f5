"""`--help`, `--version` and shell completion of every command, without importing JAX."""

import json
import os
import subprocess
import sys

import pytest

import seed_jax
from seed_jax import cli

SUBCOMMANDS = {
    "import": ["tokenizer", "llama", "opt", "unclip", "sd"],
    "export": ["tokenizer", "llama", "opt", "unclip"],
    "data": ["build", "show", "sources", "draft-codes"],
    "eval": ["run", "list", "score", "compare", "report"],
}
COMMANDS = [
    [],
    *([name] for name in cli.COMMANDS),
    *([name, kind] for name, kinds in SUBCOMMANDS.items() for kind in kinds),
]
# Prints, as the last line, which heavy packages a run of main() imported.
SCRIPT = """
import json, sys
from seed_jax.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
heavy = {"jax", "flax", "orbax", "grain", "tensorstore", "torch", "diffusers"} & sys.modules.keys()
print(json.dumps([code, sorted(heavy)]))
"""


def run(*words: str) -> tuple[str, int, list[str]]:
    process = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=True)
    *text, last = process.stdout.splitlines()
    return "\n".join(text), *json.loads(last)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_is_printed_without_jax(words):
    text, code, heavy = run(*words, "--help")
    assert code == 0
    assert heavy == []
    assert text.startswith(f"usage: {' '.join(['seed-jax', *words])}")
    assert "`" not in text.split("\n\n")[1] or words[:1] == ["data"]  # a description, not a module's docstring


def test_the_bare_command_shows_every_command():
    text, code, heavy = run()
    assert (code, heavy) == (0, [])
    assert all(f"\n    {name} " in text for name in cli.COMMANDS)


def test_version_and_completion():
    assert run("--version") == (f"seed-jax {seed_jax.__version__}", 0, [])
    for shell in ("bash", "zsh"):
        text, code, heavy = run("--print-completion", shell)
        assert (code, heavy) == (0, [])
        assert "--negative-prompt" in text
        assert "--length-penalty" in text.split("seed_jax_eval_run", 1)[1]
        assert "detokenize" in text


def test_a_closed_pipe_ends_without_a_traceback():
    """As `seed-jax --help | head -0`: the reader is gone before anything is written."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "seed_jax.cli", "--help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert process.returncode == 0
    assert process.stderr == ""


@pytest.mark.parametrize("out", ["x" * 300, "file/below"], ids=["name too long", "not a directory"])
def test_operating_system_errors_are_one_sentence(tmp_path, out, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"kind": "llama", "format": 1, "sizes": {}}')
    before = sorted(tmp_path.rglob("*"))
    command = ["import", "llama", "--from", str(tmp_path / "model"), "--out", str(tmp_path / out)]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("seed-jax: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_control_characters_of_file_names_do_not_reach_the_terminal(tmp_path, capsys):
    assert cli.main(["tokenize", f"{tmp_path}/a\x1b[31m.png", "--model", "m", "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "\\x1b[31m" in error
