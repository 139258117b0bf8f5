"""The console command `seed-jax`: one module per command.

Modules of commands import JAX and other heavy libraries inside `run`, so that `--help` and shell completion are quick.
"""

import argparse
import importlib
import logging
import os
import sys

import shtab

import seed_jax
from seed_jax.errors import UserError
from seed_jax.files import describe
from seed_jax.startup import backends, compilation_cache, huge_pages
from seed_jax.terminal import EscapedParser, PrintableFormatter, configure_streams, error_line, escaped_stdout

# Command -> (module, summary). A module is imported only when the command line names its command.
COMMANDS = {
    "fetch": ("fetch", "download official weights and check them"),
    "import": ("import_", "convert official files to a model directory"),
    "export": ("export", "convert a model directory to the PyTorch formats"),
    "verify": ("verify", "compare an imported official model with PyTorch"),
    "bundle": ("bundle", "join a language model, an image tokenizer and a decoder in one directory"),
    "tokenize": ("tokenize", "encode images as codes"),
    "detokenize": ("detokenize", "draw images from codes"),
    "data": ("data", "build and inspect dataset shards"),
    "generate": ("generate", "generate text and images from prompts"),
    "chat": ("chat", "chat with a model in the terminal"),
    "serve": ("serve", "serve a model behind OpenAI's API"),
    "eval": ("eval", "evaluate a model on benchmarks, and score predictions"),
    "train": ("train", "train a stage, or a recipe of several"),
    "plan": ("plan", "plan memory and time of a training step for a pod, without the pod"),
    "doctor": ("doctor", "examine this machine, a model directory, and what this device computes"),
}
# They compile nothing, or (plan) are about the compiler itself.
WITHOUT_CACHE = ("fetch", "bundle", "plan")
EXIT_INTERRUPTED = 130


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Create the parser of `seed-jax`.

    Args:
        command: the only command whose arguments are added; None adds those of every command.
    """
    parser = EscapedParser(
        prog="seed-jax", description="SEED and SEED-LLaMA in JAX: images as discrete tokens for a language model."
    )
    parser.add_argument("--version", action="version", version=f"seed-jax {seed_jax.__version__}")
    parser.add_argument(
        compilation_cache.NO_CACHE,
        action="store_true",
        help="compile everything anew; allowed after the command too (the cache: ~/.cache/seed_jax)",
    )
    shtab.add_argument_to(parser, "--print-completion", help="print a shell completion script and exit")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        if command in (name, None):
            importlib.import_module(f"seed_jax.cli.{module}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; bad input gives one sentence and exit code 2."""
    if argv is None:  # this process is the command
        argv = sys.argv[1:]
        if _command(argv) in ("train", "serve"):
            huge_pages.restart_with_huge_pages()
    _configure_output()
    try:
        with escaped_stdout():
            code = _run(argv)
        sys.stdout.flush()  # a closed pipe shows here, not while Python exits
        return code
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("seed-jax: interrupted; run the same command again to resume.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _command(argv: list[str]) -> str:
    return next((word for word in argv if not word.startswith("-")), "")


def _run(argv: list[str]) -> int:
    command = _command(argv)
    uses_cache = command in COMMANDS and command not in WITHOUT_CACHE
    argv = compilation_cache.configure(argv, uses_cache=uses_cache)
    everything = any(word.startswith("--print-completion") for word in argv)
    parser = build_parser(None if everything else command)
    if not argv:
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    if args.command is None:
        parser.error("a command is required: see `seed-jax --help`")
    try:
        return args.run(args) or 0
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:  # disk full, read-only, name too long, ...; atomic writes leave nothing behind
        return _fail(f"{describe(error)}.")


def _fail(sentence: str, code: int = UserError.exit_code) -> int:
    print(error_line("seed-jax", sentence), file=sys.stderr)
    return code


def _configure_output() -> None:
    """Log to stderr in plain sentences, and keep libraries' start-up messages off the terminal."""
    configure_streams()
    backends.skip_absent_tpus()
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "2")  # read by libtpu and XLA when JAX is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    for library in ("absl", "jax", "gguf"):
        logging.getLogger(library).setLevel(logging.WARNING)
