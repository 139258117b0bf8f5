"""What every request passes before a route sees it, as pure ASGI middleware: streams and disconnections pass through.

`BaseHTTPMiddleware` is not used: behind it a disconnection is not seen, and streams are buffered.
"""

import asyncio
import dataclasses
import hmac
import re
import secrets
import urllib.parse
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seed_jax.serving.openai_api.errors import ApiError, from_exception
from seed_jax.serving.openai_api.event_stream import ClientDisconnectedError

REQUEST_ID = "x-request-id"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1", "testserver")
_VALID_ID = re.compile(r"[\w.:-]{1,128}")
HEALTH = "/health"


@dataclasses.dataclass(frozen=True)
class Gate:
    """Who may send what.

    Attributes:
        api_key: key that requests must carry as a bearer token; None admits everybody.
        open_paths: paths that need no key; one that ends in "/" stands for all below it.
        allowed_hosts: values of the Host header; None accepts any. Against DNS rebinding, by which a web page reaches a
            server on the user's own machine.
        allowed_origins: origins of web pages that may call the server; pages of the server itself always may.
        max_body_bytes: size of a body.
        body_timeout_s: seconds in which a body must arrive.
    """

    api_key: str | None = None
    open_paths: tuple[str, ...] = (HEALTH, "/media/")
    allowed_hosts: tuple[str, ...] | None = None
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 2**20
    body_timeout_s: float = 30.0

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError (401, 403, 413) if a request is not admitted."""
        host = headers.get("host", "")
        if self.allowed_hosts is not None and _host_name(host) not in self.allowed_hosts:
            raise ApiError(403, "This server does not answer under this host name.", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host) and origin not in self.allowed_origins:
            raise ApiError(403, "Web pages of this origin may not call this server.", code="origin_not_allowed")
        if self.api_key is not None and not self._is_open(path):
            self._check_key(headers.get("authorization", ""))
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            raise self.too_large()

    def too_large(self) -> ApiError:
        message = f"The body is larger than {self.max_body_bytes:,} bytes."
        return ApiError(413, message, code="request_too_large")

    def _is_open(self, path: str) -> bool:
        return any(path == one or (one.endswith("/") and path.startswith(one)) for one in self.open_paths)

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        assert self.api_key is not None
        if not hmac.compare_digest(given, self.api_key.encode()):
            raise ApiError(
                401, "The API key is missing or wrong: send `Authorization: Bearer KEY`.", code="invalid_api_key"
            )

    @staticmethod
    def _is_own(origin: str, host: str) -> bool:
        return urllib.parse.urlsplit(origin).netloc == host


def _host_name(host: str) -> str:
    """Return a Host header without its port."""
    return host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0].lower()


class GateMiddleware:
    """Give every request an id, check it against a `Gate`, limit its body, and answer faults in OpenAI's form.

    Args:
        app: what is protected.
        gate: who may send what.
        is_draining: whether the server is shutting down: then only running requests are finished.
    """

    def __init__(self, app: ASGIApp, gate: Gate, is_draining: Callable[[], bool] = lambda: False):
        self.app = app
        self.gate = gate
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _VALID_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        body = _LimitedBody(receive, self.gate)
        started = replaced = False

        async def send_with_id(message: Message) -> None:
            nonlocal started, replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                # FastAPI turns any fault while it reads a body into its own status 400.
                replaced = body.fault is not None and not started
                started = True
                if body.fault is not None and replaced:
                    await body.fault.response()(scope, receive, send_first)
                    return
                response = MutableHeaders(scope=message)
                response[REQUEST_ID] = request_id
                response["X-Content-Type-Options"] = "nosniff"
            await send(message)

        async def send_first(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            self.gate.check(scope["path"], headers)
            if self._is_draining() and scope["path"] != HEALTH and scope["method"] == "POST":
                raise ApiError(
                    503, "The server is shutting down: send the request again.", code="shutting_down", retry_after_s=1.0
                )
            await self.app(scope, body.receive, send_with_id)
        except ClientDisconnectedError:
            return
        except Exception as error:
            if started:
                raise
            await from_exception(body.fault or error).response()(scope, receive, send_first)


class _LimitedBody:
    """Passes a body on until it is too large or too slow; remembers the fault, which others may have wrapped."""

    def __init__(self, receive: Receive, gate: Gate):
        self._receive = receive
        self._gate = gate
        self._size = 0
        self._complete = False
        self.fault: ApiError | None = None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._gate.body_timeout_s):
                message = await self._receive()
        except TimeoutError:
            self.fault = ApiError(408, "The body did not arrive in time.", code="request_timeout")
            raise self.fault from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._size > self._gate.max_body_bytes:
                self.fault = self._gate.too_large()
                raise self.fault
        return message


def loopback_hosts(host: str, extra: Sequence[str]) -> tuple[str, ...] | None:
    """Return the host names under which a server answers that listens on `host`; None: any.

    A server that listens on this machine only is called by its names only; one that listens on a network has names that
    it does not know, unless they are given.
    """
    if extra:
        return (*LOOPBACK_HOSTS, *(name.lower() for name in extra))
    return LOOPBACK_HOSTS if host in LOOPBACK_HOSTS else None
