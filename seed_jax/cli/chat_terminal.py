"""The terminal of `seed-jax chat`: reads messages and commands, prints answers."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from seed_jax.cli.generation_loading import load_config, load_model, log_decoder_hint, open_images
from seed_jax.errors import UserError
from seed_jax.inference.answers import format_segment, save_images
from seed_jax.inference.chat.conversation import Conversation
from seed_jax.inference.chat.prompts import SINGLE_TURN_STYLES, interleave
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, Segment, TextSegment
from seed_jax.inference.seed_llama import LoadConfig, SeedLlama

PLANNED_IMAGES = 4  # images per message for which memory is planned
HELP = """Type a message. Commands:
  /image PATH   attach an image to the next message (<image> marks where it is inserted)
  /draw TEXT    ask for an answer that begins with an image
  /reset        clear the conversation
  /save FILE    write the conversation as JSON
  /help, /quit"""


def run(args: argparse.Namespace, params: SamplingParams) -> None:
    """Load the model and chat until the user quits."""
    config = load_config(args)
    model = load_model(args, config, params, num_images=PLANNED_IMAGES, draws=config.decoder is not None)
    if model.style in SINGLE_TURN_STYLES:
        logging.info(
            "Prompt style %s: every message is answered on its own. For a model with instruction tuning give --style.",
            model.style,
        )
    conversation = Conversation(model.generator, model.style, params, as_one=args.as_one, max_history=args.history)
    print(HELP)
    Terminal(model, conversation, config, args.out).run()


class Terminal:
    """Reads lines from standard input and prints answers.

    Args:
        model: the models.
        conversation: the conversation that is continued.
        config: the models' directories; without a decoder, images are printed as codes.
        folder: directory of drawn images.
    """

    def __init__(self, model: SeedLlama, conversation: Conversation, config: LoadConfig, folder: Path):
        self._model = model
        self._conversation = conversation
        self._config = config
        self._folder = folder
        self._attached: list[tuple[int, ...]] = []  # codes of images for the next message
        self._num_drawn = 0
        self._hinted = False

    def run(self) -> None:
        """Read and answer until /quit or the end of input."""
        while True:
            try:
                line = input("\nyou> ").strip()
            except EOFError:
                print()
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self._handle(line)
            except UserError as error:
                print(f"! {error}")

    def _handle(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/image": self._attach,
            "/draw": lambda text: self._send(text, mode="image"),
            "/reset": lambda _: self._reset(),
            "/save": self._save,
            "/help": lambda _: print(HELP),
        }
        if command in commands:
            commands[command](argument.strip())
        elif command.startswith("/"):
            raise UserError(f"Unknown command {command}: /help lists the commands.")
        elif line or self._attached:
            self._send(line)

    def _attach(self, path: str) -> None:
        self._attached += self._model.encode(open_images(path))
        print(f"[{len(self._attached)} image(s) attached to your next message]")

    def _reset(self) -> None:
        self._conversation.reset()
        self._attached = []
        print("[conversation cleared]")

    def _save(self, path: str) -> None:
        self._conversation.save(path or "conversation.json")
        print(f"[saved {path or 'conversation.json'}]")

    def _send(self, text: str, **changes) -> None:
        for piece in self._conversation.ask(interleave(text, self._attached), **changes):
            if isinstance(piece, Generation):
                self._finish(piece)
            elif isinstance(piece, TextSegment):
                print(piece.text, end="", flush=True)
            else:
                self._show(piece)
        self._attached = []

    def _show(self, segment: Segment) -> None:
        paths = []
        if self._config.decoder is not None:
            self._num_drawn += 1
            paths = save_images(self._model, [segment], self._folder, f"chat_{self._num_drawn:03d}")
        elif not self._hinted:
            self._hinted = True
            log_decoder_hint(self._config)
        print(f"\n{format_segment(segment, paths[0] if paths else None)}", flush=True)

    def _finish(self, answer: Generation) -> None:
        notes = {"length": "[reached the maximum length]", "interrupted": "[interrupted]"}
        print(notes.get(answer.finish_reason, ""), flush=True)
        if self._conversation.num_dropped:
            print(f"[the {self._conversation.num_dropped} oldest messages no longer fit into the prompt]")
