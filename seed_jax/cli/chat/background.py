"""Model calls in a thread of their own, so that the terminal shows progress and obeys Ctrl-C while XLA compiles."""

import concurrent.futures
import contextlib
import logging
import os
import queue
import shutil
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from seed_jax.inference.generation.generator import Interrupt
from seed_jax.terminal import printable, write_controls

T = TypeVar("T")
QUIET_SECONDS = 0.4  # without news before the status is shown
TICK_SECONDS = 0.1
_END = object()


class AbandonedError(Exception):
    """The user pressed Ctrl-C twice and does not wait for the result."""


class StatusLine(logging.Handler):
    """Shows what the program waits for, and for how long, behind the text on a terminal; removed by the next output.

    As a logging handler it takes messages of level INFO, such as "compiling ...", as the status, and prints others.
    """

    def __init__(self):
        super().__init__()
        self._enabled = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._text = ""
        self._since = self._started = time.monotonic()
        self._visible = False
        self._column = 0

    def start(self, text: str) -> None:
        """Begin to wait for something."""
        self._text, self._started = text, time.monotonic()
        self._since = self._started

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno == logging.INFO:
            self._text = message.removesuffix(" ...")
            if not self._enabled:
                print(printable(message), file=sys.stderr, flush=True)
        else:
            self.print(f"{message}\n")

    def print(self, text: str) -> None:
        """Print text of a model or a message in place of the status."""
        self.clear()
        text = printable(text)
        sys.stdout.write(text)
        sys.stdout.flush()
        last = text.rpartition("\n")[2]
        self._column = (0 if "\n" in text else self._column) + len(last)
        self._since = time.monotonic()

    def begin_line(self) -> None:
        """Move to the beginning of a line."""
        if self._column:
            self.print("\n")

    def tick(self) -> None:
        """Show the status once nothing has been printed for a while."""
        now = time.monotonic()
        if not self._enabled or now - self._since < QUIET_SECONDS:
            return
        width = shutil.get_terminal_size().columns
        room = width - self._column % width - 2
        status = printable(f" [{self._text}, {now - self._started:.0f} s]".replace("\n", " "))
        if self._column == 0:
            status = status.lstrip()
        if room >= 12:
            # Behind the saved cursor position, to which the cursor returns: dimmed, the rest of the line erased.
            write_controls(f"\x1b7\x1b[2m{status[:room]}\x1b[0m\x1b[K\x1b8")
            self._visible = True

    def clear(self) -> None:
        if self._visible:
            write_controls("\x1b[K")
            self._visible = False

    @contextlib.contextmanager
    def capture_log(self) -> Iterator[None]:
        """Take the log's messages instead of the handlers that print them."""
        root = logging.getLogger()
        handlers = root.handlers[:]
        root.handlers[:] = [self]
        try:
            yield
        finally:
            root.handlers[:] = handlers


@contextlib.contextmanager
def _echo_off() -> Iterator[None]:
    """Keep what the user types meanwhile for the next prompt, instead of mixing it with the answer."""
    if not sys.stdin.isatty():
        yield
        return
    earlier = termios.tcgetattr(sys.stdin)
    silent = earlier[:]
    silent[3] &= ~termios.ECHO  # local modes; Ctrl-C still sends a signal
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, earlier)


class Background:
    """One thread for all model calls; the results arrive in the caller's thread.

    Args:
        status: shows progress.
    """

    def __init__(self, status: StatusLine):
        self._status = status
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "model")
        self._running: concurrent.futures.Future | None = None

    def call(self, text: str, function: Callable[[], T]) -> T:
        """Return what a function returns, as `iterate` does for iterators."""
        (result,) = self.iterate(text, lambda interrupt: iter([function()]))
        return result

    def iterate(self, text: str, start: Callable[[Interrupt], Iterator[T]]) -> Iterator[T]:
        """Yield what an iterator yields in the background.

        Args:
            text: what the status shows.
            start: returns the iterator; it is handed an `Interrupt`, which the first Ctrl-C sets.

        Raises:
            AbandonedError: Ctrl-C was pressed twice. The call runs on until it looks at the interrupt, and its results
                are ignored; the next call begins after it.
        """
        results: queue.SimpleQueue = queue.SimpleQueue()
        with Interrupt() as interrupt, self._status.capture_log(), _echo_off():
            is_waiting = self._running is not None and not self._running.done()
            self._status.start("waiting for the stopped answer" if is_waiting else text)
            self._running = self._executor.submit(self._pump, start, interrupt, results, text)
            announced = False
            try:
                while True:
                    try:
                        result = results.get(timeout=TICK_SECONDS)
                    except queue.Empty:
                        self._status.tick()
                        if interrupt.requested and not announced:
                            announced = True
                            self._status.begin_line()
                            self._status.print("[stopping; Ctrl-C again does not wait for it]\n")
                        continue
                    if result is _END:
                        break
                    self._status.clear()
                    yield result
                self._running.result()  # raises what the iterator raised
            except KeyboardInterrupt:
                interrupt.requested = True
                raise AbandonedError from None
            finally:
                self._status.clear()

    def close(self) -> None:
        """Wait for an abandoned call; Python cannot end cleanly while XLA works. A Ctrl-C ends the process at once."""
        if self._running is not None and not self._running.done():
            print("[waiting for the stopped answer; Ctrl-C ends at once]", flush=True)
            try:
                concurrent.futures.wait([self._running])
            except KeyboardInterrupt:
                sys.stdout.flush()
                os._exit(130)
        self._executor.shutdown()

    def _pump(
        self, start: Callable[[Interrupt], Iterator[T]], interrupt: Interrupt, results: queue.SimpleQueue, text: str
    ) -> None:
        self._status.start(text)
        try:
            for result in start(interrupt):
                results.put(result)
        finally:
            results.put(_END)
