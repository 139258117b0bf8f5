"""Fetch artefacts into a directory: in parallel, resumable, checked, and complete under their final names only.

root/NAME/<files>            complete, checked files
root/NAME/fetched.json       where each file came from and its SHA-256, which later runs compare with
root/NAME/.partial/          what interrupted downloads have; continued by the next run
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.files import locked, parse_json, read_text, write_json
from seed_jax.hub.manifest import Artefact, File, Source
from seed_jax.hub.sources import Locator, Remote, SourceError, describe
from seed_jax.hub.transfer import Progress, Stopped, Transfer
from seed_jax.hub.verify import Expected, WrongContent, check, check_size
from seed_jax.lfs import lfs_pointer
from seed_jax.sizes import format_size

RECORD = "fetched.json"
DOWNLOADS = "downloads"  # where `seed-jax fetch --import` keeps what it fetched, below the bundle
PARTIAL = ".partial"
LOCK = ".fetch.lock"
_FORMAT = 1
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to fetch.

    Attributes:
        optional: fetch optional files too.
        accept_licence: the licence of gated artefacts was accepted, so that ungated copies may be used.
        workers: files that are fetched at the same time.
        timeout: seconds without data after which an attempt ends.
        retries: further attempts without any new data before the next source is tried.
        wait: seconds before the first retry; doubled each time.
    """

    optional: bool = False
    accept_licence: bool = False
    workers: int = 4
    timeout: float = 30.0
    retries: int = 5
    wait: float = 1.0


@dataclasses.dataclass(frozen=True)
class Fetched:
    """One complete, checked file.

    Attributes:
        path: where it is.
        sha256: of its content.
        downloaded: False where it was there already.
    """

    path: Path
    sha256: str
    downloaded: bool


def fetch(artefacts: Sequence[Artefact], root: Path, options: Options | None = None) -> list[Fetched]:
    """Fetch all files of some artefacts into `root`, one directory each; what is there already is checked only.

    Raises:
        UserError: a file cannot be fetched or is not what it should be, or the disk has no room. Files that were
            completed before stay, and what has come of the others is continued by the next call.
    """
    import httpx

    options = options or Options()
    with contextlib.ExitStack() as stack:
        try:
            for artefact in artefacts:
                directory = root / artefact.name
                directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(directory / LOCK, str(directory)))
                partials = directory / PARTIAL
                partials.mkdir(exist_ok=True)  # for all workers, and removed when none runs any more
                stack.callback(_remove_if_empty, partials)
        except OSError as error:
            raise UserError(f"Cannot write to {root} ({error.strerror}): choose another --to.") from None
        tasks = [
            _Task(artefact, file, root / artefact.name)
            for artefact in artefacts
            for file in artefact.selected_files(options.optional)
        ]
        missing = [task for task in tasks if not task.path.exists()]
        remaining = sum(task.remaining() for task in missing)
        _check_space(root, remaining)
        timeout = httpx.Timeout(options.timeout)
        client = stack.enter_context(httpx.Client(follow_redirects=True, timeout=timeout))
        progress = Progress(remaining)
        stack.callback(progress.close)
        run = _Run(root, options, client, progress)
        stack.enter_context(_log_above_bar())
        # The largest first, so that none is left over when the others are done.
        tasks.sort(key=lambda task: -(task.file.size or 0))
        return run.all(tasks)


class _Task:
    """One file of an artefact and its places on disk."""

    def __init__(self, artefact: Artefact, file: File, directory: Path):
        self.artefact, self.file, self.directory = artefact, file, directory
        self.path = directory / file.path
        self._stem = file.path.replace("/", "__")

    def partial(self, key: str) -> Path:
        """Return the partial file of a content or a version on a server; another version has another name."""
        return self.directory / PARTIAL / f"{self._stem}.{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def partials(self) -> list[Path]:
        return list((self.directory / PARTIAL).glob(f"{self._stem}.*"))

    def remaining(self) -> int:
        """Return the bytes that are still to come, as far as known."""
        there = max((path.stat().st_size for path in self.partials()), default=0)
        return max((self.file.size or 0) - there, 0)


class _Run:
    """The state that the workers of one call share."""

    def __init__(self, root: Path, options: Options, client: Any, progress: Progress):
        self._root, self._options, self._progress = root, options, progress
        self._stop = threading.Event()
        self._transfer = Transfer(
            client, self._stop, timeout=options.timeout, retries=options.retries, wait=options.wait
        )
        self._locator = Locator(client, self._transfer.retry, options.timeout)
        self._records = threading.Lock()

    def all(self, tasks: list[_Task]) -> list[Fetched]:
        """Do all tasks; a failing one does not end the others, except where the disk is full."""
        fetched, failures = [], []
        with ThreadPoolExecutor(self._options.workers, thread_name_prefix="fetch") as pool:
            futures = [pool.submit(self._one, task) for task in tasks]
            try:
                for future in futures:
                    try:
                        fetched.append(future.result())
                    except UserError as error:
                        failures.append(str(error))
                    except Stopped:  # by a failure that another future reports
                        pass
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise
        if len(failures) == 1:
            raise UserError(failures[0])
        if failures:
            listed = "".join(f"\n  {failure}" for failure in failures)
            raise UserError(f"{len(failures)} of {len(tasks)} files could not be fetched:{listed}")
        return fetched

    def _one(self, task: _Task) -> Fetched:
        if self._stop.is_set():
            raise Stopped
        try:
            if task.path.exists():
                if (present := self._present(task)) is not None:
                    return present
                logging.info("%s is a Git LFS pointer: the file itself is fetched.", task.path)
            return self._from_sources(task)
        except OSError as error:
            if error.errno in _NO_SPACE:
                self._stop.set()
                raise UserError(
                    f"The disk of {self._root} became full while {task.file.path} was fetched: free some space and run "
                    "the same command again, which continues."
                ) from None
            raise UserError(f"Cannot write {task.path}: {error.strerror or error}.") from None

    def _present(self, task: _Task) -> Fetched | None:
        """Check a file that is there; None where it is a Git LFS pointer."""
        if not task.path.is_file():
            raise UserError(f"{task.path} is not a regular file: remove it or choose another --to.")
        if lfs_pointer(task.path):
            return None
        recorded = self._recorded(task)
        expected = Expected(sha256=recorded, origin=f"{RECORD} has")
        try:
            sha256 = check(task.path, task.artefact, task.file, expected)
        except WrongContent as wrong:
            raise UserError(f"{task.path} {wrong}: delete it and run the same command again.") from None
        if recorded is None:
            self._record(task, sha256, "found in place", None)
        logging.info("%s is there; its SHA-256 %s.", task.path, "is right" if task.file.sha256 else "was compared")
        return Fetched(task.path, sha256, downloaded=False)

    def _from_sources(self, task: _Task) -> Fetched:
        failures: list[str] = []
        remedies: list[str] = []
        for source in task.artefact.sources:
            if source.kind == "manual":
                failures.append(f"the file must be downloaded by hand from {source.where} to {task.path}")
                remedies.append("then run the same command again, which checks it")
                continue
            if source.ungated_copy and not self._options.accept_licence:
                failures.append(f"{describe(source)} is a copy without the gate of the original")
                remedies.append(
                    f"if you have accepted its licence ({task.artefact.licence}), add --accept-licence to use the copy"
                )
                continue
            try:
                return self._from_source(task, source)
            except SourceError as error:
                logging.warning("%s: %s: %s.", task.file.path, describe(source), error)
                failures.append(f"{describe(source)}: {error}")
                if error.remedy:
                    remedies.append(error.remedy)
        if not remedies:
            remedies.append(
                "run the same command again, which continues, set HF_ENDPOINT to a mirror, or put the file at "
                f"{task.path} yourself, where it will be checked"
            )
        reasons, advice = "; ".join(failures), ", or ".join(dict.fromkeys(remedies))
        raise UserError(f"Cannot fetch {task.file.path} of {task.artefact.name} ({reasons}): {advice}.")

    def _from_source(self, task: _Task, source: Source) -> Fetched:
        file, recorded = task.file, self._recorded(task)
        known = file.sha256 if file.sha256 and len(file.sha256) == 64 else recorded
        remote = self._locator.locate(source, file.path, hash_known=known is not None)
        _refuse_early(task, remote)
        key = known or remote.sha256 or (remote.validator and f"{remote.url} {remote.validator}")
        partial = task.partial(key or "")
        if key is None:  # nothing tells whether the server still has the file that an earlier run began with
            partial.unlink(missing_ok=True)
        if remote.size is None and file.exact:
            remote = dataclasses.replace(remote, size=file.size)
        expected = Expected(
            size=remote.size,
            sha256=recorded or remote.sha256,
            git_blob=remote.git_blob,
            origin=f"{RECORD} of an earlier download has" if recorded else "the server states",
        )
        sha256 = self._read_checked(task, source, remote, partial, expected)
        task.path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(task.path)
        self._record(task, sha256, describe(source), remote.revision)
        for other in task.partials():
            other.unlink(missing_ok=True)
        logging.info("%s (%s, SHA-256 %s)", task.path, format_size(task.path.stat().st_size), sha256[:16] + "...")
        return Fetched(task.path, sha256, downloaded=True)

    def _read_checked(self, task: _Task, source: Source, remote: Remote, partial: Path, expected: Expected) -> str:
        """Complete a partial file and return its SHA-256; what does not hold is deleted."""
        continued = partial.exists() and partial.stat().st_size > 0
        self._read(task, source, remote, partial, continued)
        try:
            return check(partial, task.artefact, task.file, expected)
        except WrongContent as wrong:
            self._progress.add(-partial.stat().st_size)
            partial.unlink()
            if not continued:
                raise SourceError(f"the file there {wrong}") from None
            # Two servers, or two versions on one, may have given its parts.
            logging.info("%s %s: it is read again from the start.", task.file.path, wrong)
            return self._read_checked(task, source, remote, partial, expected)

    def _read(self, task: _Task, source: Source, remote: Remote, partial: Path, continued: bool) -> None:
        if remote.cached is not None:
            logging.info("%s: copied from the cache of huggingface_hub", task.file.path)
            shutil.copyfile(remote.cached, partial)
            self._progress.add(partial.stat().st_size)
            return
        verb = f"continued at {format_size(partial.stat().st_size)}" if continued else "fetched"
        logging.info("%s: %s from %s", task.file.path, verb, describe(source))
        self._transfer.read(remote, partial, self._progress.add)

    def _recorded(self, task: _Task) -> str | None:
        """Return the SHA-256 that an earlier run recorded for a file."""
        with self._records:
            return read_record(task.directory)["files"].get(task.file.path, {}).get("sha256")

    def _record(self, task: _Task, sha256: str, source: str, revision: str | None) -> None:
        with self._records:
            record = read_record(task.directory)
            record |= {"format": _FORMAT, "artefact": task.artefact.name, "licence": task.artefact.licence}
            record["files"][task.file.path] = {
                "size": task.path.stat().st_size,
                "sha256": sha256,
                "sha256_in_manifest": task.file.sha256 is not None,
                "source": source,
                "revision": revision,
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            }
            write_json(task.directory / RECORD, record)


def read_record(directory: Path) -> dict[str, Any]:
    """Read `fetched.json` of an artefact's directory; without one, return a record of no files.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / RECORD
    try:
        record = parse_json(read_text(path))
    except FileNotFoundError:
        return {"files": {}}
    except (OSError, ValueError):
        record = None
    files = record.get("files") if isinstance(record, dict) else None
    whole = isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in files.values()
    )
    if not isinstance(record, dict) or not whole:
        raise UserError(f"{path} is damaged: delete it; the files beside it will be checked and recorded again.")
    return record


def _refuse_early(task: _Task, remote: Remote) -> None:
    """Refuse a file by what the server states of it, before gigabytes of it are read."""
    if remote.sha256 and (what := task.artefact.known_wrong(remote.sha256)):
        raise SourceError(f"the file there is {what}")
    if remote.sha256 and task.file.sha256 and not remote.sha256.startswith(task.file.sha256):
        raise SourceError(
            f"the file there has the SHA-256 {remote.sha256[:16]}... where {task.file.sha256[:16]}... is expected"
        )
    if remote.size is not None and remote.size >= 0:
        try:
            check_size(remote.size, task.file, task.path)
        except WrongContent as wrong:
            raise SourceError(f"the file there {wrong}") from None


def _check_space(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"{root} has {format_size(free)} free but {format_size(needed)} are still to be fetched: free "
            f"{format_size(needed - free)} there or choose another --to."
        )


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


@contextlib.contextmanager
def _log_above_bar() -> Iterator[None]:
    """Print log lines above a progress bar, and keep the addresses of each request out of the log."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    requests = logging.getLogger("httpx")
    level = requests.level
    requests.setLevel(logging.WARNING)
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        requests.setLevel(level)
