"""Reading of messages: with line editing, history and completion on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT, CONTINUATION = "you> ", "...  "
PATH_COMMANDS = ("/image", "/load", "/save")


class LineReader:
    """Reads messages; a backslash at the end of a line continues it, on a terminal Alt-Enter inserts a line break.

    Args:
        commands: words that the Tab key completes.
    """

    def __init__(self, commands: Sequence[str]):
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._session = (
            PromptSession(
                history=_open_history(),
                completer=_Completer(commands),
                complete_while_typing=False,
                key_bindings=_key_bindings(),
                multiline=True,  # pasted lines stay one message; Enter sends it
                prompt_continuation=CONTINUATION,
                enable_open_in_editor=True,
            )
            if self.interactive
            else None
        )

    def read(self) -> str:
        """Return the next message.

        Raises:
            EOFError: the input has ended.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        lines = [self._read_line(PROMPT)]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            try:
                lines.append(self._read_line(CONTINUATION))
            except EOFError:  # the next call raises it
                break
        return "\n".join(lines).strip()

    def _read_line(self, prompt: str) -> str:
        if self._session is not None:
            return self._session.prompt(prompt)
        return input(prompt)


class _Completer(Completer):
    """Completes commands, and paths after those that take one."""

    def __init__(self, commands: Sequence[str]):
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        command, space, argument = document.text_before_cursor.partition(" ")
        if not space:
            yield from (Completion(name, -len(command)) for name in self._commands if name.startswith(command or " "))
        elif command in PATH_COMMANDS:
            path = argument.lstrip("\"'")
            yield from self._paths.get_completions(Document(path), complete_event)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _open_history() -> History:
    """Return the history of earlier sessions, or an empty one where no file can be kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    path = Path(state) / "seed_jax/chat_history"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        if os.access(path, os.R_OK | os.W_OK):
            return FileHistory(str(path))
    return InMemoryHistory()


def split_paths(text: str) -> Iterator[Path]:
    """Yield the paths in the argument of a command, written as in a shell: quotes, backslashes and `~` are understood.

    A path with spaces needs no quotes if it is the only one and exists.
    """
    whole = Path(text).expanduser()
    words = [] if whole.exists() else _shell_words(text)
    paths = [Path(word).expanduser() for word in words]
    yield from paths if any(path.exists() for path in paths) or len(paths) == 1 else [whole]


def _shell_words(text: str) -> list[str]:
    import shlex

    try:
        return shlex.split(text)
    except ValueError:  # no closing quote: an apostrophe in a name
        return [text]
