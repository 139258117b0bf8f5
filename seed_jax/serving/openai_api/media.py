"""Images that requests refer to: data URIs, and what `--allow-images-from` permits of URLs and local files.

Every route reads images through `MediaLoader`, so that these rules hold everywhere:

- A URL is parsed once, and what was parsed is what is fetched: no second parser can see another host.
- Its host must be named by the operator. The host is resolved once, every address must be public, and the connection
  goes to the checked address, so that a name that resolves differently the second time (DNS rebinding) gains nothing.
- A redirect is a new URL: it passes the same rules.
- A file must be in a named directory after all links are resolved.
- Bytes, pixels and time are limited before anything is decoded; only PNG, JPEG and WebP are decoded, and messages of
  the decoders are not passed on.
"""

import base64
import binascii
import contextlib
import dataclasses
import http.client
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from seed_jax import images
from seed_jax.errors import UserError
from seed_jax.files import is_path
from seed_jax.serving.openai_api.errors import ApiError

MIB = 2**20
_DATA_URI = re.compile(r"data:(image/[a-z0-9.+-]{1,40})?((?:;[a-z-]+=[\w-]+)*);base64,", re.IGNORECASE)
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", re.IGNORECASE)
_MAX_URL = 2048
_MAX_REDIRECTS = 3
_CHUNK = 64 * 1024
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP")  # MPO: JPEG files of several images, as phones write them
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS = (301, 302, 303, 307, 308)

Resolver = Callable[[str, int], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class MediaRules:
    """Limits of the images in requests.

    Attributes:
        hosts: host names, with a port unless it is the scheme's own, that URLs may name.
        directories: directories whose files `file://` URLs may name.
        allow_private_addresses: also connect to hosts whose addresses are not public, such as those of a local network.
        max_bytes: size of an encoded image.
        max_pixels: width times height.
        max_images: images of one request.
        timeout_s: time that fetching one image may take.
    """

    hosts: frozenset[str] = frozenset()
    directories: tuple[Path, ...] = ()
    allow_private_addresses: bool = False
    max_bytes: int = 20 * MIB
    max_pixels: int = 32_000_000
    max_images: int = 32
    timeout_s: float = 10.0

    @classmethod
    def from_sources(cls, sources: Sequence[str], **limits) -> "MediaRules":
        """Build from the values of `--allow-images-from`.

        Args:
            sources: `HOST`, `HOST:PORT` or a directory, which is recognized by a slash or a leading dot.
            limits: other fields.

        Raises:
            UserError: a directory does not exist, or a host name is malformed.
        """
        hosts, directories = set(), []
        for source in sources:
            if "/" in source or source.startswith((".", "~")):
                directory = Path(source).expanduser().resolve()
                if not directory.is_dir():
                    raise UserError(f"--allow-images-from {source}: this directory does not exist.")
                directories.append(directory)
                continue
            name, _, port = source.partition(":")
            if not _HOST.fullmatch(name) or (port and not port.isdecimal()):
                raise UserError(f"--allow-images-from {source}: expected a host name, HOST:PORT or a directory.")
            hosts.add(source.lower())
        return cls(frozenset(hosts), tuple(directories), **limits)


def is_public(address: str) -> bool:
    """Return whether an IP address is reachable over the public Internet, embedded IPv4 addresses included."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            embedded.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(inner is not None and not is_public(str(inner)) for inner in embedded):
            return False
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return True  # the embedded address decided
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


@dataclasses.dataclass(frozen=True)
class RemoteImage:
    """A URL that passed the rules, as it will be fetched."""

    scheme: str
    host: str
    port: int
    target: str


def resolve_host(host: str, port: int) -> list[str]:
    """Return the addresses of a host, by the operating system."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class MediaLoader:
    """Reads the images that a request refers to; its methods block and are called in worker threads.

    Args:
        rules: what is permitted.
        resolver: returns the addresses of (host, port).
    """

    def __init__(self, rules: MediaRules = MediaRules(), resolver: Resolver = resolve_host):
        self.rules = rules
        self._resolver = resolver

    def image(self, url: str, where: str) -> Image.Image:
        """Return the upright RGB image that a URL stands for.

        Args:
            url: data URI, or http(s) or file URL.
            where: its place in the request, for error messages.

        Raises:
            ApiError: 400 or 413, what is wrong with it.
        """
        return self.decode(self.read(url, where), where)

    def read(self, url: str, where: str) -> bytes:
        """Return the encoded bytes that a URL stands for."""
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return self._data_uri(url, where)
        if scheme in ("http", "https"):
            return self._fetch(url, where)
        if scheme == "file":
            return self._file(url, where)
        raise ApiError(
            400,
            f"{where} is neither a data URI nor a URL: send data:image/png;base64,...",
            param=where,
            code="invalid_image_url",
        )

    def decode(self, data: bytes, where: str) -> Image.Image:
        """Return an encoded image as upright RGB, after its format and size have been checked."""
        self._check_size(len(data), where)
        try:
            width, height = images.read_size(data, _FORMATS)
        except UserError:
            raise _unreadable(where) from None
        if width * height > self.rules.max_pixels:
            raise ApiError(
                413,
                f"{where} has more than {self.rules.max_pixels:,} pixels: scale it down.",
                param=where,
                code="image_too_large",
            )
        try:
            return images.load(data, where)
        except UserError:
            raise _unreadable(where) from None

    def _check_size(self, size: int, where: str) -> None:
        if size > self.rules.max_bytes:
            raise ApiError(
                413,
                f"{where} is larger than {self.rules.max_bytes:,} bytes: scale it down.",
                param=where,
                code="image_too_large",
            )

    def _data_uri(self, url: str, where: str) -> bytes:
        match = _DATA_URI.match(url, 0, 200)
        if match is None:
            raise ApiError(
                400,
                f"{where} is not a base64 data URI of an image: send data:image/png;base64,...",
                param=where,
                code="invalid_image_url",
            )
        self._check_size((len(url) - match.end()) * 3 // 4 - 2, where)
        try:
            return base64.b64decode(url[match.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, f"{where} has invalid base64.", param=where, code="invalid_image_url") from None

    # Local files

    def _file(self, url: str, where: str) -> bytes:
        refused = ApiError(
            400,
            f"{where} is a local file that this server may not read: send a data URI (local files need the server's "
            "--allow-images-from DIR).",
            param=where,
            code="image_source_not_allowed",
        )
        parts = urllib.parse.urlsplit(url)
        path = urllib.parse.unquote(parts.path)
        if not self.rules.directories or parts.netloc not in ("", "localhost") or not is_path(path) or len(path) > 4096:
            raise refused
        try:
            resolved = Path(path).resolve()
            if not any(resolved.is_relative_to(directory) for directory in self.rules.directories):
                raise refused
            # NOFOLLOW and NONBLOCK: `resolved` has no links, and a FIFO that replaces the file must not block.
            descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, RuntimeError):  # RuntimeError: a loop of links
            raise refused from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise refused
            self._check_size(status.st_size, where)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return file.read(self.rules.max_bytes + 1)
        finally:
            os.close(descriptor)

    # URLs

    def parse(self, url: str, where: str) -> RemoteImage:
        """Parse and check an http(s) URL; the host must be one that the operator named."""
        malformed = ApiError(400, f"{where} is a malformed URL.", param=where, code="invalid_image_url")
        # Parsers disagree about backslashes, controls, blanks and user names: such URLs are refused.
        if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or set(url) & set('\\ "<>^`{|}'):
            raise malformed
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise malformed from None
        if "@" in parts.netloc or not _HOST.fullmatch(host):
            raise malformed
        scheme = parts.scheme.lower()
        own_port = {"http": 80, "https": 443}.get(scheme)
        if own_port is None:
            raise malformed
        name = host if port in (None, own_port) else f"{host}:{port}"
        if name not in self.rules.hosts:
            raise ApiError(
                400,
                f"{where} is a URL that this server may not fetch: send a data URI (URLs need the server's "
                "--allow-images-from HOST).",
                param=where,
                code="image_source_not_allowed",
            )
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        return RemoteImage(scheme, host, own_port if port is None else port, target)

    def _fetch(self, url: str, where: str) -> bytes:
        deadline = time.monotonic() + self.rules.timeout_s
        secure = False
        for _ in range(_MAX_REDIRECTS + 1):
            remote = self.parse(url, where)
            if secure and remote.scheme == "http":
                break  # a redirect away from TLS
            secure = remote.scheme == "https"
            try:
                answer = self._get(remote, where, deadline)
            except (OSError, http.client.HTTPException, ValueError):
                raise ApiError(400, f"{where} could not be fetched.", param=where, code="image_fetch_failed") from None
            if isinstance(answer, bytes):
                return answer
            url = urllib.parse.urljoin(url, answer)
        raise ApiError(400, f"{where} redirects too often.", param=where, code="image_fetch_failed")

    def _get(self, remote: RemoteImage, where: str, deadline: float) -> bytes | str:
        """Return the body, or the address that a redirect names."""
        with _Connection(remote, self._address(remote, where), deadline) as connection:
            connection.request("GET", remote.target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            with connection.getresponse() as response:
                if response.status in _REDIRECTS:
                    return response.getheader("Location") or ""
                if response.status != 200:
                    raise OSError(f"status {response.status}")
                self._check_size(int(response.getheader("Content-Length") or 0), where)
                data = bytearray()
                while chunk := response.read1(_CHUNK):
                    data += chunk
                    self._check_size(len(data), where)
                if time.monotonic() >= deadline:
                    raise TimeoutError  # the connection was cut; the body may be incomplete
                return bytes(data)

    def _address(self, remote: RemoteImage, where: str) -> str:
        """Resolve the host once, and refuse it if any of its addresses is not public."""
        addresses = list(self._resolver(remote.host, remote.port))
        if not addresses:
            raise OSError("no address")
        if not self.rules.allow_private_addresses and not all(map(is_public, addresses)):
            raise ApiError(
                400,
                f"{where} names a host whose address is not public.",
                param=where,
                code="image_source_not_allowed",
            )
        return addresses[0]


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, under the name of its host."""

    def __init__(self, remote: RemoteImage, address: str, deadline: float):
        self._deadline = deadline
        self._timer: threading.Timer | None = None
        super().__init__(remote.host, remote.port, timeout=self._remaining())
        self._remote = remote
        self._address = address
        self.default_port = 443 if remote.scheme == "https" else 80  # left out of the Host header

    def _remaining(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    def connect(self) -> None:
        self.sock = self._socket = socket.create_connection((self._address, self._remote.port), self._remaining())
        # A socket's own timeout begins again with every byte that arrives.
        self._timer = threading.Timer(self._remaining(), self._abort)
        self._timer.daemon = True
        self._timer.start()
        if self._remote.scheme == "https":
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._remote.host)

    def _abort(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.close()


def _unreadable(where: str) -> ApiError:
    return ApiError(
        400,
        f"{where} cannot be decoded: send a PNG, JPEG or WebP image.",
        param=where,
        code="invalid_image",
    )
