"""Find a file at one of its sources: a repository of the Hugging Face Hub, a web server, or a page for people.

Repositories are reached through `huggingface_hub`: its token, its cache, HF_ENDPOINT and HF_HUB_OFFLINE hold here too.
The bytes themselves are read by `transfer`, because `hf_hub_download` deletes what it has when it is interrupted.
"""

import dataclasses
import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from seed_jax.hub.manifest import Source

if TYPE_CHECKING:
    import httpx

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class SourceError(Exception):
    """A source cannot give a file; the message says why, without naming the source.

    Attributes:
        remedy: what the user can do about it; None where another source or another attempt is all there is.
        transient: whether the same request may succeed later.
    """

    def __init__(self, reason: str, *, remedy: str | None = None, transient: bool = False):
        super().__init__(reason)
        self.remedy = remedy
        self.transient = transient


@dataclasses.dataclass(frozen=True)
class Remote:
    """Where the bytes of a file are, and what the server reports about them.

    Attributes:
        url: address to read; "" where the file is in the local cache.
        headers: of the request; may hold a token, and are therefore never logged.
        size: in bytes, if stated.
        sha256: if stated (for large files of a hub).
        git_blob: SHA-1 of the content as a git object, if stated (for small files of a hub).
        revision: full commit id; None for web servers.
        validator: ETag or date that changes with the content; None where the server gives none.
        cached: the file in the cache of `huggingface_hub`, if it is there.
    """

    url: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None
    revision: str | None = None
    validator: str | None = None
    cached: Path | None = None


class Locator:
    """Locate files at sources; keeps the commits that abbreviated revisions stand for.

    Args:
        client: for web servers.
        retry: calls a function again while its SourceError is transient.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, client: "httpx.Client", retry: Callable[[Callable[[], Remote]], Remote], timeout: float):
        self._client = client
        self._retry = retry
        self._timeout = timeout
        self._lock = threading.Lock()
        self._revisions: dict[tuple[str, str], str] = {}

    def locate(self, source: Source, path: str, *, hash_known: bool) -> Remote:
        """Return where `path` (of the manifest) is at this source.

        Args:
            hash_known: whether the content is known by its SHA-256; else a validator is asked for, so that a partial
                download is continued only while the file on the server is the same.

        Raises:
            SourceError: it is not there, or cannot be reached.
        """
        remote_path = source.path_of(path)
        if source.kind == "hub":
            return self._retry(lambda: self._hub(source, remote_path))
        if _offline():
            raise SourceError("HF_HUB_OFFLINE is set", remedy="unset HF_HUB_OFFLINE")
        url = f"{source.where}/{quote(remote_path)}"
        return Remote(url) if hash_known else self._retry(lambda: self._web(url))

    def _hub(self, source: Source, path: str) -> Remote:
        import httpx
        import huggingface_hub
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import build_hf_headers

        repository, revision = source.where, source.revision or "main"
        endpoint = constants.ENDPOINT
        if _offline():
            for candidate in _cached_revisions(repository, revision):
                if cached := _cached(repository, path, candidate):
                    return Remote("", revision=candidate, cached=cached)
            raise SourceError(
                "HF_HUB_OFFLINE is set and the file is not in the cache of huggingface_hub",
                remedy="unset HF_HUB_OFFLINE",
            )
        gate = f"accept the licence at {endpoint}/{repository}, then set HF_TOKEN or run `hf auth login`"
        try:
            revision = self._full_revision(repository, revision, endpoint)
            if cached := _cached(repository, path, revision):
                return Remote("", revision=revision, cached=cached)
            url = huggingface_hub.hf_hub_url(repository, path, revision=revision, endpoint=endpoint)
            found = huggingface_hub.get_hf_file_metadata(url, timeout=self._timeout)
        except errors.GatedRepoError:
            raise SourceError("the repository is gated and no token with access was given", remedy=gate) from None
        except errors.RepositoryNotFoundError:
            raise SourceError("the repository does not exist, or is private") from None
        except errors.RevisionNotFoundError:
            raise SourceError(f"the repository has no revision {revision}") from None
        except errors.EntryNotFoundError:
            raise SourceError(f"the repository has no file {path} (HTTP 404)") from None
        except (httpx.HTTPError, OSError) as error:
            raise _network_error(error, self._timeout, gate) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # the library read what no hub sends
            raise _no_hub(endpoint, f"{type(error).__name__}: {first_line(error)}") from None
        if found.commit_hash is None or found.etag is None:
            raise _no_hub(endpoint, "no commit id or no ETag")
        return Remote(
            url=huggingface_hub.hf_hub_url(repository, path, revision=found.commit_hash, endpoint=endpoint),
            headers=build_hf_headers(library_name="seed-jax"),
            size=found.size,
            sha256=found.etag if _SHA256.fullmatch(found.etag) else None,
            git_blob=found.etag if _COMMIT.fullmatch(found.etag) else None,
            revision=found.commit_hash,
            validator=found.etag,
        )

    def _full_revision(self, repository: str, revision: str, endpoint: str) -> str:
        """Return the commit that an abbreviated id stands for: the hub takes full ids and branches only."""
        from huggingface_hub import HfApi

        if not _SHORT_COMMIT.fullmatch(revision):
            return revision
        with self._lock:
            if (repository, revision) not in self._revisions:
                commits = [commit.commit_id for commit in HfApi(endpoint=endpoint).list_repo_commits(repository)]
                full = next((commit for commit in commits if commit.startswith(revision)), None)
                if full is None:
                    logging.warning("%s has no commit %s any more: its main branch is taken.", repository, revision)
                self._revisions[repository, revision] = full or "main"
            return self._revisions[repository, revision]

    def _web(self, url: str) -> Remote:
        import httpx

        try:
            response = self._client.head(url, headers={"Accept-Encoding": "identity"})
        except httpx.HTTPError as error:
            raise _network_error(error, self._timeout) from None
        if response.status_code in TRANSIENT_STATUS:
            raise SourceError(f"HTTP {response.status_code}", transient=True)
        if not response.is_success:  # some servers refuse HEAD but not GET
            return Remote(url)
        etag, length = response.headers.get("etag", ""), response.headers.get("content-length", "")
        return Remote(
            url,
            size=int(length) if length.isdecimal() else None,
            validator=(etag if not etag.startswith("W/") else "") or response.headers.get("last-modified"),
        )


def describe(source: Source) -> str:
    """Return a source as log lines and messages name it."""
    return source.where if source.revision is None else f"{source.where}@{source.revision[:7]}"


def _no_hub(endpoint: str, detail: str) -> SourceError:
    return SourceError(f"{endpoint} does not answer like a hub ({detail})", remedy="check HF_ENDPOINT")


def _network_error(error: Exception, timeout: float, gate: str | None = None) -> SourceError:
    import httpx

    # An HTTP status, as httpx or requests carry it.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        remedy = gate if status in (401, 403) else None
        return SourceError(status_text(status), remedy=remedy, transient=status in TRANSIENT_STATUS)
    if isinstance(error, httpx.TimeoutException) or "timed out" in str(error).lower():
        return SourceError(f"no answer within {timeout:g} s", transient=True)
    return SourceError(f"no connection ({first_line(error)})", transient=True)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def status_text(status: int) -> str:
    """Return an HTTP status with its meaning."""
    meaning = {401: "not authorised", 403: "forbidden", 404: "not there", 410: "removed", 429: "too many requests"}
    return f"HTTP {status}" + (f", {meaning[status]}" if status in meaning else "")


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _cached(repository: str, path: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, path, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _cached_revisions(repository: str, revision: str) -> list[str]:
    """Return the revisions in the cache that `revision` may stand for."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    if not _SHORT_COMMIT.fullmatch(revision):
        return [revision]
    try:
        repositories = [entry for entry in scan_cache_dir().repos if entry.repo_id == repository]
    except CacheNotFound:
        return []
    commits = [found.commit_hash for entry in repositories for found in entry.revisions]
    return [commit for commit in commits if commit.startswith(revision)]
