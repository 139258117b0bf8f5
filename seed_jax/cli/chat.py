"""`seed-jax chat`: a conversation in the terminal."""

import argparse
from collections.abc import Callable
from pathlib import Path

from seed_jax.cli.generation_options import add_model_options, add_settings, load, open_pictures, settings_of
from seed_jax.errors import UserError
from seed_jax.inference.answers import line, save_pictures
from seed_jax.inference.chat.conversation import Conversation
from seed_jax.inference.chat.prompts import interleave
from seed_jax.inference.generation.generator import Generation
from seed_jax.inference.generation.sampling_params import Settings
from seed_jax.inference.generation.segments import TextSegment
from seed_jax.inference.seed_llama import SeedLlama

PICTURES = 4  # of a turn, for which memory is planned
HELP = """Write what you want to say. Commands:
  /image PATH   show a picture with the next words (<image> in them says where)
  /draw TEXT    ask for an answer that begins with an image
  /reset        forget the conversation
  /save FILE    write the conversation as JSON
  /help, /quit"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("chat", help=__doc__, description=run.__doc__)
    add_model_options(parser, style="vicuna")
    parser.add_argument("--out", type=Path, default=Path("pictures"), metavar="DIR", help="of drawn pictures")
    parser.add_argument("--history", type=int, metavar="N", help="most earlier questions repeated (default: what fits)")
    parser.add_argument(
        "--as-one", action="store_true", help="encode the history as one text, as the original's demo did"
    )
    # The settings of the original's demo.
    add_settings(parser, Settings(max_new_tokens=256, temperature=1.0, top_p=0.5))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Talk: words appear as they come, drawn images are saved; Ctrl-C ends an answer, Ctrl-D the conversation."""
    settings = settings_of(args)
    if args.history is not None and args.history < 0:
        raise UserError(f"--history {args.history}: expected 0 or more.")
    model = load(args, settings, pictures=PICTURES)
    talk = Conversation(model.generator, args.style, settings, as_one=args.as_one, history=args.history)
    print(HELP)
    Terminal(model, talk, args.out if args.decoder else None).run()


class Terminal:
    """Reads lines and shows answers; `folder` is where images go that are drawn, None draws none."""

    def __init__(self, model: SeedLlama, talk: Conversation, folder: Path | None):
        self._model, self._talk, self._folder = model, talk, folder
        self._shown: list[tuple[int, ...]] = []  # codes of pictures for the next turn
        self._drawn = 0

    def run(self) -> None:
        while True:
            try:
                text = input("\nyou> ").strip()
            except EOFError:
                print()
                return
            if text in ("/quit", "/exit"):
                return
            try:
                self._obey(text)
            except UserError as error:
                print(f"! {error}")

    def _obey(self, text: str) -> None:
        command, _, rest = text.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/draw": lambda words: self._say(words, mode="image"),
            "/reset": lambda _: self._reset(),
            "/save": self._save,
            "/help": lambda _: print(HELP),
        }
        if command in commands:
            commands[command](rest.strip())
        elif command.startswith("/"):
            raise UserError(f"Unknown command {command}: /help shows those there are.")
        elif text or self._shown:
            self._say(text)

    def _image(self, path: str) -> None:
        self._shown += self._model.encode(open_pictures(path))
        print(f"[{len(self._shown)} picture(s) go with your next words]")

    def _reset(self) -> None:
        self._talk.reset()
        self._shown = []
        print("[forgotten]")

    def _save(self, path: str) -> None:
        self._talk.save(path or "conversation.json")
        print(f"[saved {path or 'conversation.json'}]")

    def _say(self, text: str, **changes) -> None:
        segments = interleave(text, self._shown)
        for piece in self._talk.ask(segments, **changes):
            if isinstance(piece, Generation):
                self._end(piece)
            elif isinstance(piece, TextSegment):
                print(piece.text, end="", flush=True)
            else:
                self._show(piece)
        self._shown = []

    def _show(self, segment) -> None:
        paths = []
        if self._folder is not None:
            self._drawn += 1
            paths = save_pictures(self._model, [segment], self._folder, f"chat_{self._drawn:03d}")
        print(f"\n{line(segment, paths[0] if paths else None)}", flush=True)

    def _end(self, answer: Generation) -> None:
        notes = {"length": "[as long as allowed]", "interrupted": "[interrupted]"}
        print(notes.get(answer.stopped, ""), flush=True)
        if self._talk.dropped:
            print(f"[the {self._talk.dropped} oldest turns are no longer repeated to the model]")
