"""Run the application under uvicorn, and shut it down so that running answers are finished."""

import asyncio
import logging
import signal
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from seed_jax.errors import UserError
from seed_jax.serving.service import SeedService

_POLL_S = 0.05
_MAX_HEADER_BYTES = 32 * 1024


class ApiServer(uvicorn.Server):
    """A uvicorn server that drains: after the first signal `/health` fails and new requests are refused, while running
    answers are finished; after `shutdown_timeout_s`, or the second signal, the rest is cancelled.

    Args:
        app: the application.
        service: what it serves.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        shutdown_timeout_s: seconds for running answers.
    """

    def __init__(self, app: FastAPI, service: SeedService, *, host: str, port: int, shutdown_timeout_s: float = 30.0):
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=65,  # longer than the 60 s after which load balancers close idle connections
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            http="h11",
            ws="none",
        )
        super().__init__(config)
        self._service = service
        self._shutdown_timeout_s = shutdown_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task | None = None

    async def startup(self, sockets: list | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        except SystemExit:
            raise UserError(
                f"Cannot listen on {self.config.host}:{self.config.port}: the port is in use, or not permitted; choose "
                "another --port."
            ) from None
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                logging.info("Serving on http://%s:%d (Ctrl-C ends).", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is None and not self.should_exit and self._loop is not None:
            self._service.close()
            self._loop.call_soon_threadsafe(self._begin_drain)
        else:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        waiting = self._service.num_requests
        if waiting and self._shutdown_timeout_s > 0:
            logging.info("Shutting down: %d answer(s) are finished first ...", waiting)
        deadline = asyncio.get_running_loop().time() + self._shutdown_timeout_s
        while self._service.num_requests and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_S)
        # Answers whose time is over end as interrupted.
        await asyncio.to_thread(self._service.shutdown)
        self.should_exit = True


def serve(server: ApiServer, service: SeedService) -> None:
    """Serve until a signal ends it; the engine runs on during the drain."""
    assert threading.current_thread() is threading.main_thread()  # signals reach it only
    try:
        server.run()
    finally:
        service.shutdown()
