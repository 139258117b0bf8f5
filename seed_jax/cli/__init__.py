"""The console command `seed-jax`: one module a command, one call each."""

import argparse
import importlib
import logging
import sys

from seed_jax.errors import UserError

# Modules, imported only when the command line names them, so that `seed-jax --help` is quick.
COMMANDS = {
    "import": ("import_", "official files to a model directory"),
    "export": ("export", "a model directory to the PyTorch formats"),
    "tokenize": ("tokenize", "pictures to codes"),
    "detokenize": ("detokenize", "codes to pictures"),
    "data": ("data", "build and look at shards"),
    "generate": ("generate", "answer prompts with text and images"),
    "chat": ("chat", "a conversation in the terminal"),
    "plan": ("plan", "what a training step needs and takes on a pod, without one"),
    "doctor": ("doctor", "versions, devices, what is installed and what is missing"),
}
EXIT_BAD_INPUT = 2


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; with `wanted`, only that command's arguments are filled in."""
    parser = argparse.ArgumentParser(prog="seed-jax", description="SEED and SEED-LLaMA in JAX.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"seed_jax.cli.{module}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; bad input gives one sentence and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("absl", "jax"):
        logging.getLogger(library).setLevel(logging.WARNING)
    wanted = next((word for word in argv if word in COMMANDS), None)
    args = build_parser(wanted).parse_args(argv)
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"seed-jax: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("seed-jax: interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
