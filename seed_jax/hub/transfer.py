"""Read a file over HTTP into a partial file, continuing where an earlier attempt ended."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from seed_jax.hub.sources import TRANSIENT_STATUS, Remote, SourceError, first_line, status_text
from seed_jax.hub.verify import START, kind_of
from seed_jax.sizes import format_size

if TYPE_CHECKING:
    import httpx

_T = TypeVar("_T")
_LONGEST_WAIT_S = 10.0


class Stopped(Exception):  # noqa: N818  (control flow, not an error)
    """The transfer was asked to stop; what was read so far is kept."""


class Transfer:
    """Read files over HTTP, with retries.

    Args:
        client: of httpx; follows redirects.
        stop: when set, transfers end with `Stopped` at the next block.
        timeout: seconds without data after which an attempt ends.
        retries: further attempts without any new data before a source is given up.
        wait: seconds before the first retry; doubled each time.
    """

    def __init__(self, client: "httpx.Client", stop: threading.Event, *, timeout: float, retries: int, wait: float):
        self._client = client
        self._stop = stop
        self._timeout = timeout
        self._retries = retries
        self._wait = wait

    def retry(self, call: Callable[[], _T]) -> _T:
        """Return what `call` returns, repeating it while it raises a transient SourceError."""
        for attempt in range(self._retries + 1):
            try:
                return call()
            except SourceError as error:
                if not error.transient or attempt == self._retries:
                    raise
                self._pause(attempt, error)
        raise AssertionError("unreachable")

    def read(self, remote: Remote, partial: Path, on_bytes: Callable[[int], None]) -> None:
        """Read all of a file into `partial`, after what it already holds.

        Args:
            remote: where to read; its size, where known, must be reached exactly.
            partial: the leading bytes of the same file, or missing.
            on_bytes: called with the number of new bytes; with a negative one when they are thrown away.

        Raises:
            SourceError: the source fails for good; `partial` keeps what came.
            Stopped: see the constructor.
            OSError: the disk is full, or the file cannot be written.
        """
        attempt, furthest = 0, _size(partial)
        while True:
            try:
                self._read_once(remote, partial, on_bytes)
                return
            except SourceError as error:
                if _size(partial) > furthest:
                    attempt, furthest = 0, _size(partial)
                if not error.transient or attempt >= self._retries:
                    raise
                self._pause(attempt, error)
                attempt += 1

    def _pause(self, attempt: int, error: SourceError) -> None:
        logging.info("%s: trying again.", str(error)[0].upper() + str(error)[1:])
        if self._stop.wait(min(self._wait * 2**attempt, _LONGEST_WAIT_S)):
            raise Stopped

    def _read_once(self, remote: Remote, partial: Path, on_bytes: Callable[[int], None]) -> None:
        import httpx

        offset = _size(partial)
        if remote.size is not None and offset == remote.size and offset:
            return
        if remote.size is not None and offset > remote.size:
            offset = _discard(partial, on_bytes)
        # identity: a compressed answer has neither the file's size nor its byte ranges.
        headers = {**remote.headers, "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with self._client.stream("GET", remote.url, headers=headers) as response:
                _check_answer(response)
                if response.status_code == 416:
                    _discard(partial, on_bytes)
                    raise SourceError("the server has fewer bytes than were already read", transient=True)
                if offset and not _continues(response, offset):
                    offset = _discard(partial, on_bytes)
                expected = _expected_size(response, offset)
                if remote.size is not None and expected is not None and expected != remote.size:
                    kind = kind_of(next(response.iter_raw(), b"")[:START])
                    offers = f"{kind}, with {expected:,} bytes" if kind else f"{expected:,} bytes"
                    raise SourceError(f"the server offers {offers} where {remote.size:,} are expected")
                if remote.size is None and expected is None and response.headers.get("transfer-encoding") is None:
                    raise SourceError("the server does not say how long the file is, so that its end cannot be checked")
                self._write(response, partial, on_bytes)
        except httpx.TimeoutException:
            raise SourceError(f"no data for {self._timeout:g} s", transient=True) from None
        except httpx.ConnectError as error:
            raise SourceError(f"no connection ({first_line(error)})", transient=True) from None
        except httpx.TooManyRedirects:
            raise SourceError("too many redirects") from None
        except (httpx.TransportError, httpx.StreamError) as error:
            raise SourceError(f"the connection ended early ({first_line(error)})", transient=True) from None
        except httpx.HTTPError as error:
            raise SourceError(str(error)) from None
        total = remote.size if remote.size is not None else expected
        if total is not None and _size(partial) != total:
            raise SourceError(f"only {_size(partial):,} of {total:,} bytes came", transient=True)

    def _write(self, response: "httpx.Response", partial: Path, on_bytes: Callable[[int], None]) -> None:
        with partial.open("ab") as file:
            for block in response.iter_raw():
                file.write(block)
                on_bytes(len(block))
                if self._stop.is_set():
                    raise Stopped


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(partial: Path, on_bytes: Callable[[int], None]) -> int:
    """Delete what was read, and return the new offset."""
    on_bytes(-_size(partial))
    partial.unlink(missing_ok=True)
    return 0


def _check_answer(response: "httpx.Response") -> None:
    """Refuse error statuses, HTML pages and redirects that leave HTTPS."""
    status = response.status_code
    if status in TRANSIENT_STATUS:
        raise SourceError(status_text(status), transient=True)
    if status not in (200, 206, 416):
        raise SourceError(status_text(status))
    if response.url.scheme == "http" and any(step.url.scheme == "https" for step in response.history):
        raise SourceError(f"the server redirects from HTTPS to {response.url.host} without encryption")
    if response.headers.get("content-type", "").startswith(("text/html", "application/xhtml")):
        raise SourceError("the server sent an HTML page instead of the file (an error or login page)")


def _continues(response: "httpx.Response", offset: int) -> bool:
    """Return whether an answer begins at `offset`; a server that ignores ranges sends the whole file."""
    return response.status_code == 206 and response.headers.get("content-range", "").startswith(f"bytes {offset}-")


def _expected_size(response: "httpx.Response", offset: int) -> int | None:
    """Return the size of the whole file by the answer's headers."""
    length = response.headers.get("content-length", "")
    return offset + int(length) if length.isdecimal() else None


class Progress:
    """Show how many bytes have come: a bar in a terminal, else a log line now and then.

    Args:
        total: bytes to come, as far as known.
        interval_s: seconds between log lines.
    """

    def __init__(self, total: int, interval_s: float = 30.0):
        from tqdm import tqdm

        self._total, self._done, self._interval_s = total, 0, interval_s
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total or None, unit="B", unit_scale=True, desc="fetch", dynamic_ncols=True)

    def add(self, count: int) -> None:
        """Count bytes that came, or a negative number of bytes that were thrown away."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
                return
            now = time.monotonic()
            if now - self._last < self._interval_s:
                return
            self._last = now
            rate = int(self._done / (now - self._start))
            done, total, speed = (format_size(max(size, 0)) for size in (self._done, self._total, rate))
            logging.info("%s of about %s, %s per second", done, total, speed)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
