"""Mounting the chat page in the server's application, closed towards every other host."""

import atexit
import hmac
import importlib.resources
import os
import shutil
import tempfile
from pathlib import Path

# Before Gradio is imported, which reads them: no usage statistics, no version check, no other host.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Base
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seed_jax.serving.service import SeedService
from seed_jax.serving.web.page import ChatPage, PageConfig

MAX_FILE_SIZE = "20mb"
# The browser enforces that the page reaches its own server only, whatever a model writes. Gradio's programs need inline
# scripts and evaluation.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONOSPACE_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def mount_page(app: FastAPI, service: SeedService, config: PageConfig, *, api_key: str | None = None) -> FastAPI:
    """Add the chat page to an application.

    Args:
        app: the application of the API; the page calls the service, not the API.
        service: answers.
        config: what the page shows, and its path.
        api_key: password that the page asks for, with any user name; None: it asks for none.
    """
    folder = Path(tempfile.mkdtemp(prefix="seed_jax_page_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = importlib.resources.files("seed_jax.serving.web")
    script = package.joinpath("page.js").read_text(encoding="utf-8")
    app.add_middleware(PolicyMiddleware, root=config.root)
    return gr.mount_gradio_app(
        app,
        ChatPage(service, config, folder).build(),
        path=config.root,
        auth=None if api_key is None else lambda _, password: hmac.compare_digest(password.encode(), api_key.encode()),
        auth_message="The password is the server's API key; the user name may be anything.",
        allowed_paths=[str(folder)],
        max_file_size=MAX_FILE_SIZE,
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        theme=Base(
            primary_hue="blue", neutral_hue="slate", radius_size="md", font=SYSTEM_FONTS, font_mono=MONOSPACE_FONTS
        ),
        css=package.joinpath("page.css").read_text(encoding="utf-8"),
        # Browsers ask the server's root for an icon unless the page names one.
        head=f'<link rel="icon" href="data:,"><script>{script}</script>',
    )


class PolicyMiddleware:
    """Send the content security policy with every answer of the page.

    Args:
        app: what the page is mounted in.
        root: path of the page.
    """

    def __init__(self, app: ASGIApp, root: str):
        self._app = app
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == self._root or path.startswith(f"{self._root}/")):
            await self._app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_with_policy)
