"""The FastAPI application: routes, errors and middleware around one `SeedService`."""

import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import seed_jax
from seed_jax.serving.openai_api.context import ApiContext
from seed_jax.serving.openai_api.errors import install_handlers
from seed_jax.serving.openai_api.metrics import Metrics
from seed_jax.serving.openai_api.middleware import REQUEST_ID, Gate, GateMiddleware
from seed_jax.serving.openai_api.routes import chat, images, responses, server, tokens

DESCRIPTION = """SEED-LLaMA behind OpenAI's API, with images in and out.

Chat completions carry drawn images in `message.images` (streaming: `delta.images`) and the order of text and images,
with every image's 32 codes, in `segments`; responses have them as output items in order."""


def create_app(context: ApiContext, gate: Gate, *, is_draining: Callable[[], bool] = lambda: False) -> FastAPI:
    """Build the application.

    Args:
        context: the service and its settings.
        gate: who may send what.
        is_draining: whether the server finishes running requests only.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        context.service.close()

    app = FastAPI(title="seed_jax", version=seed_jax.__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.context = context
    app.state.metrics = Metrics(context.config.model_name)
    app.state.metrics.attach(context.service)
    for module in (chat, responses, images, tokens, server):
        app.include_router(module.router)
    install_handlers(app)
    app.add_middleware(GateMiddleware, gate=gate, is_draining=is_draining)
    if gate.allowed_origins:
        # Outside the gate: a browser's preflight request carries no key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(gate.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", REQUEST_ID],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    return app
