"""The terminal of `seed-jax chat`: commands, turns and the file of the conversation."""

import argparse
import dataclasses
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from seed_jax.cli.chat.background import AbandonedError, Background, StatusLine
from seed_jax.cli.chat.line_reader import LineReader, split_paths
from seed_jax.cli.generation_loading import load_config, load_model, log_decoder_hint, log_unused_options, open_images
from seed_jax.errors import UserError
from seed_jax.inference.answers import format_segment
from seed_jax.inference.chat.conversation import Conversation, Turn
from seed_jax.inference.chat.prompts import SINGLE_TURN_STYLES, interleave
from seed_jax.inference.chat.transcript import RecordedMessage, Transcript, TranscriptFile, as_attachment
from seed_jax.inference.generation.generator import Interrupt
from seed_jax.inference.generation.sampling_params import MAX_SEED, SamplingParams
from seed_jax.inference.generation.segments import Generation, ImageSegment, Segment, TextSegment
from seed_jax.inference.seed_llama import LoadConfig, SeedLlama

PLANNED_IMAGES = 4  # images per message for which memory is planned
EXIT_INTERRUPTED = 130
HELP = r"""Type a message. Enter sends it; Alt-Enter, or a backslash at the end of a line,
begins a new line. Ctrl-C stops an answer, Ctrl-D ends the conversation.
  /image PATH...  attach images to the next message; <image> in it marks where
                  one is inserted (\<image> is plain text)
  /remove [N]     remove an attached image (default: the last one)
  /draw TEXT      ask for an answer that begins with an image
  /images N       exactly N images in every answer; /images auto leaves it to the model
  /seed N         seed of the next answer, to repeat one
  /retry          answer the last message again, with the next seed
  /undo           remove the last message and its answer
  /reset          begin a new conversation
  /save [FILE]    write the conversation and its images; without FILE, show where
                  they are saved after every answer
  /load FILE      continue a saved conversation: JSON, or an archive of the chat page
  /help, /quit"""
NOTES = {"length": "reached the maximum length", "interrupted": "interrupted"}


def run(args: argparse.Namespace, params: SamplingParams) -> int:
    """Load the model and chat until the user quits; return the exit code."""
    resumed = None if args.resume is None else _resumed_path(args.resume, args.out)
    log_unused_options(params, None)
    config = load_config(args)
    model = load_model(args, config, [params], num_images=PLANNED_IMAGES, draws=config.decoder is not None)
    if model.style in SINGLE_TURN_STYLES:
        logging.info(
            "Prompt style %s: every message is answered on its own. For a model with instruction tuning give --style.",
            model.style,
        )
    conversation = Conversation(model.generator, model.style, params, as_one=args.as_one, max_history=args.history)
    terminal = Terminal(model, conversation, config, args.out)
    if resumed is not None:
        terminal.load(resumed)
    print(HELP)
    return terminal.run()


def _resumed_path(path: Path, folder: Path) -> Path:
    """Return the file to continue: `path`, or the newest conversation of the folder if it is the empty path."""
    if path.name:
        return path.expanduser()
    saved = [file for file in folder.glob("chat_*.json") if file.stat().st_size]
    if not saved:
        raise UserError(f"{folder} has no saved conversation: give its file to --resume, or its directory to --out.")
    return max(saved, key=lambda file: file.stat().st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class Attachment:
    """An image of the next message."""

    path: Path
    image: Image.Image
    codes: tuple[int, ...]


class Terminal:
    """Reads messages and commands, prints answers and saves the conversation after each of them.

    Args:
        model: the models.
        conversation: the conversation that is continued.
        config: the models' directories; without a decoder, images are printed as codes.
        folder: directory of conversations and drawn images.
    """

    def __init__(self, model: SeedLlama, conversation: Conversation, config: LoadConfig, folder: Path):
        self._model = model
        self._conversation = conversation
        self._config = config
        self._folder = folder
        self._file: TranscriptFile | None = None  # reserved when there is something to save
        self._copies: dict[Path, TranscriptFile] = {}  # files that /save wrote
        self._attached: list[Attachment] = []
        self._next_seed = conversation.sampling_params.seed
        self._status = StatusLine()
        self._background = Background(self._status)
        self._hinted = False
        self._last_changes: dict[str, Any] = {}  # what the last message changed in the decoding options
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._attach,
            "/remove": self._remove,
            "/draw": self._draw,
            "/images": self._set_num_images,
            "/seed": self._set_seed,
            "/retry": self._retry,
            "/undo": self._undo,
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: print(HELP),
        }

    def run(self) -> int:
        """Read and answer until /quit or the end of input; return the exit code."""
        reader, code = LineReader([*self._commands, "/quit"]), 0
        while True:
            print()
            try:
                text = reader.read()
            except EOFError:
                print()
                break
            except KeyboardInterrupt:
                if reader.interactive:
                    print("[line dropped; Ctrl-D or /quit ends the conversation]")
                    continue
                code = EXIT_INTERRUPTED
                print()
                break
            if text in ("/quit", "/exit"):
                break
            self._handle(text)
        if self._file is not None and self._conversation.messages:
            print(f"[conversation saved; continue it with --resume {shlex.quote(str(self._file.path))}]", flush=True)
        self._background.close()
        return code

    def load(self, path: Path) -> None:
        """Continue a saved conversation; it stays in its file if that is one of this chat's directory.

        Raises:
            UserError: the file is no conversation that fits the model.
        """
        transcript = Transcript.load(path, self._model.generator.vocabulary)
        self._conversation.reset()
        self._conversation.messages = list(transcript.messages)
        self._attached, self._file = [], None
        if path.suffix == ".json" and path.parent.resolve() == self._folder.resolve():
            self._file = TranscriptFile(path)
            self._file.continue_from(transcript)
        if transcript.messages:
            self._next_seed = (transcript.messages[-1].seed or 0) + 1
        self._status.print(f"[{len(transcript.messages) // 2} question(s) and answer(s) loaded from {path}]\n")
        if transcript.style != self._conversation.style:
            self._status.print(f"[saved with prompt style {transcript.style}, continued with {self._model.style}]\n")
        if transcript.messages:
            self._status.print(f"{_summary(transcript.messages[-2])}\n{_summary(transcript.messages[-1])}\n")

    def _handle(self, text: str) -> None:
        """Run a command or answer a message; whatever fails, the conversation continues."""
        command, _, argument = text.partition(" ")
        try:
            if command in self._commands:
                self._commands[command](argument.strip())
            elif command.startswith("/") and "\n" not in text:
                raise UserError(f"Unknown command {command}: /help lists the commands.")
            elif text or self._attached:
                self._send(text)
        except (AbandonedError, KeyboardInterrupt):
            self._status.begin_line()
            self._status.print("[dropped; the conversation is as before]\n")
        except Exception as error:  # such as a device out of memory: a long conversation must not be lost with it
            self._complain(_sentence(error))
            logging.debug("Traceback of the error above:", exc_info=True)

    def _complain(self, sentence: str) -> None:
        self._status.begin_line()
        self._status.print(f"! {sentence}\n")

    def _attach(self, argument: str) -> None:
        if not argument:
            print("Usage: /image PATH...  attaches images to the next message.")
            self._list_attached()
            return
        opened = [(path, image) for path in split_paths(argument) for image in open_images(str(path))]
        encoded = self._background.call(
            "encoding the image", lambda: self._model.encode([image for _, image in opened])
        )
        for (path, image), codes in zip(opened, encoded, strict=True):
            self._attached.append(Attachment(path, as_attachment(image), codes))
        self._list_attached()

    def _list_attached(self) -> None:
        names = ", ".join(f"{number}: {entry.path.name}" for number, entry in enumerate(self._attached, 1))
        note = f" ({names}); /remove N removes one" if names else ""
        self._status.print(f"[{len(self._attached)} image(s) attached to your next message{note}]\n")

    def _remove(self, argument: str) -> None:
        if not self._attached:
            raise UserError("No image is attached.")
        number = _integer(argument, 1, len(self._attached), "/remove N") if argument else len(self._attached)
        del self._attached[number - 1]
        self._list_attached()

    def _draw(self, text: str) -> None:
        if not text and not self._attached:
            print("Usage: /draw TEXT  asks for an answer that begins with an image.")
            return
        self._send(text, mode="image")

    def _set_num_images(self, argument: str) -> None:
        number = None if argument == "auto" else _integer(argument, 0, None, "/images N, or /images auto")
        params = self._conversation.sampling_params
        self._conversation.sampling_params = dataclasses.replace(params, num_images=number)
        print("[the model decides on images]" if number is None else f"[every answer has exactly {number} image(s)]")

    def _set_seed(self, argument: str) -> None:
        self._next_seed = _integer(argument, 0, MAX_SEED, "/seed N")
        print(f"[the next answer has seed {self._next_seed}]")

    def _retry(self, _: str) -> None:
        messages = self._conversation.messages[:]
        message = self._conversation.undo()
        if message is None:
            raise UserError("There is no message to answer again.")
        try:
            self._answer(message.segments, message.images, **self._last_changes)
        except BaseException:
            self._conversation.messages = messages
            raise

    def _undo(self, _: str) -> None:
        message = self._conversation.undo()
        if message is None:
            raise UserError("There is no message to remove.")
        self._autosave()
        self._status.print(f"[removed, with its answer: {_summary(message)}]\n")

    def _reset(self, _: str) -> None:
        saved = f", the earlier one is in {self._file.path}" if self._file and self._conversation.messages else ""
        self._conversation.reset()
        self._attached, self._file = [], None
        self._status.print(f"[a new conversation{saved}]\n")

    def _save(self, argument: str) -> None:
        if not argument:
            self._autosave()
            place = self._file.path if self._file else None
            self._status.print(f"[saved {place}]\n" if place else "[nothing to save yet]\n")
            return
        (path, *more) = split_paths(argument)
        if more:
            raise UserError("Usage: /save FILE; put a path with spaces into quotes.")
        copy = self._copies.get(path.absolute()) or TranscriptFile(path)
        copy.write(self._conversation.transcript)
        self._copies[path.absolute()] = copy
        self._status.print(f"[saved {path}]\n")

    def _load(self, argument: str) -> None:
        (path, *more) = split_paths(argument) if argument else (None, None)
        if path is None or more:
            raise UserError("Usage: /load FILE; put a path with spaces into quotes.")
        self.load(path)

    def _send(self, text: str, **changes: Any) -> None:
        segments = interleave(text, [entry.codes for entry in self._attached])
        self._answer(segments, [entry.image for entry in self._attached], **changes)
        self._attached = []

    def _answer(self, segments: Sequence[Segment], images: Sequence[Image.Image | None], **changes: Any) -> None:
        """Print the answer to a message, and save the conversation."""
        seed = self._next_seed % (MAX_SEED + 1)
        turn = self._conversation.prepare(segments, images, seed=seed, **changes)
        self._next_seed, self._last_changes = seed + 1, changes
        drawn: list[Image.Image | None] = []
        with_images = self._background.iterate("generating", lambda interrupt: self._generate(turn, interrupt))
        for piece, image, problem in with_images:
            if isinstance(piece, Generation):
                self._conversation.record(turn, piece, drawn)
                self._finish(piece, seed)
            elif isinstance(piece, TextSegment):
                self._status.print(piece.text)
            else:
                drawn += [image] if isinstance(piece, ImageSegment) else []
                self._show(piece, image, problem)
        if drawn and self._config.decoder is None and not self._hinted:
            self._hinted = True
            log_decoder_hint(self._config)

    def _generate(
        self, turn: Turn, interrupt: Interrupt
    ) -> Iterator[tuple[Segment | Generation, Image.Image | None, str | None]]:
        """Yield the pieces of an answer, images with what they look like or with why they could not be drawn."""
        num_images = 0
        for piece in self._model.generator.stream(turn.request, interrupt=interrupt):
            image, problem = None, None
            if isinstance(piece, ImageSegment):
                if self._config.decoder is not None and not interrupt.requested:
                    self._status.start("drawing")
                    try:
                        seed = (turn.request.sampling_params.seed + num_images) % (MAX_SEED + 1)
                        (image,) = self._model.draw([piece], seed)
                    except Exception as error:  # the answer is worth keeping
                        problem = _sentence(error)
                    self._status.start("generating")
                num_images += 1
            yield piece, image, problem

    def _show(self, segment: Segment, image: Image.Image | None, problem: str | None) -> None:
        self._status.begin_line()
        path = None
        if image is not None:
            try:
                path = self._open_file().add_image(image)
            except OSError as error:
                problem = f"Cannot write the image to {self._folder}: {error.strerror or error}."
        if problem is not None:
            self._complain(problem)
        self._status.print(f"{format_segment(segment, path)}\n")

    def _finish(self, answer: Generation, seed: int) -> None:
        self._status.begin_line()
        note = NOTES.get(answer.finish_reason)
        self._status.print(f"[{note}; seed {seed}]\n" if note else f"[seed {seed}]\n")
        if self._conversation.num_dropped:
            self._status.print(
                f"[the {self._conversation.num_dropped} oldest messages no longer fit into the prompt]\n"
            )
        self._autosave()

    def _autosave(self) -> None:
        if not self._conversation.messages and self._file is None:
            return
        try:
            self._open_file().write(self._conversation.transcript)
        except (UserError, OSError) as error:
            self._complain(f"The conversation is not saved: {error}")

    def _open_file(self) -> TranscriptFile:
        """Return the file of the conversation: a new one if another process has changed it."""
        if self._file is None or not self._file.is_own:
            self._file = TranscriptFile.create(self._folder)
        return self._file


def _sentence(error: Exception) -> str:
    """Return what to print of an error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _integer(text: str, low: int, high: int | None, usage: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise UserError(f"Usage: {usage}.") from None
    if number < low or (high is not None and number > high):
        limit = f"{low} to {high}" if high is not None else f"at least {low}"
        raise UserError(f"{number} is out of range, expected {limit}.")
    return number


def _summary(message: RecordedMessage) -> str:
    """Return the beginning of a message on one line."""
    texts = [segment.text if isinstance(segment, TextSegment) else " [image] " for segment in message.segments]
    text = " ".join("".join(texts).split())
    prefix = "you> " if message.role == "user" else ""
    return f"{prefix}{text[:200]}{'...' if len(text) > 200 else ''}"
