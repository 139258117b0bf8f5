"""`seed-jax chat`: a conversation in the terminal."""

import argparse
from pathlib import Path

from seed_jax.cli import serve
from seed_jax.cli.generation_options import (
    add_decoding_options,
    add_image_options,
    add_model_options,
    sampling_params,
)
from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import SamplingParams

SUMMARY = "a conversation in the terminal"
DESCRIPTION = (
    "Chat in the terminal: text is streamed, and the conversation with its images is saved in --out after every "
    "answer. Ctrl-C stops an answer, Ctrl-D ends the conversation; /help lists the commands."
)
# Decoding options of the original's demo.
DEFAULTS = SamplingParams(max_new_tokens=256, temperature=1.0, top_p=0.5)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its arguments."""
    parser = subparsers.add_parser("chat", help=SUMMARY, description=DESCRIPTION)
    add_model_options(parser)
    conversation = parser.add_argument_group("conversation")
    conversation.add_argument(
        "--history", type=int, metavar="N", help="most earlier questions in a prompt (default: as many as fit)"
    )
    conversation.add_argument(
        "--as-one", action="store_true", help="encode the history as one text, as the original's demo does"
    )
    conversation.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="continue the conversation saved in FILE (default: the newest one in --out)",
    )
    web = parser.add_argument_group("web")
    web.add_argument(
        "--web",
        action="store_true",
        help="chat in a browser instead, on a page that this machine serves; of the options below, --temperature, "
        "--top-p and --max-new-tokens are its defaults, the others are set on the page",
    )
    web.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port of the page; 0: a free one (default: 8000)"
    )
    add_decoding_options(parser, DEFAULTS)
    add_image_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        default=Path("chats"),
        metavar="DIR",
        help="directory of conversations and their images (default: chats)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Chat until the user quits; return the exit code."""
    params = sampling_params(args)
    if args.history is not None and args.history < 0:
        raise UserError(f"--history is {args.history}, expected at least 0.")
    if args.web:
        if args.resume is not None:
            raise UserError("--resume continues a conversation in the terminal: with --web, open its file on the page.")
        return _serve_page(args)
    # Imported late: `--help` and wrong arguments are answered without waiting for JAX.
    from seed_jax.cli.chat import terminal

    return terminal.run(args, params)


def _serve_page(args: argparse.Namespace) -> int:
    """Run `seed-jax serve --ui` with the options that both commands have."""
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    served = parser.parse_args(["serve", "--model", str(args.model), "--ui"])
    for name in vars(served).keys() & vars(args).keys() - {"run"}:
        setattr(served, name, getattr(args, name))
    serve.run(served)
    return 0
