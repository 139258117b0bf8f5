"""`/v1/models`, `/health`, `/metrics` and the files of drawn images."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from seed_jax.serving.openai_api.context import ApiContext, get_context
from seed_jax.serving.openai_api.errors import ApiError
from seed_jax.serving.openai_api.routes.documents import ERRORS, answered

router = APIRouter(tags=["server"])
_MODEL = {"id": "seed_llama", "object": "model", "created": 1780000000, "owned_by": "seed_jax", "max_model_len": 2048}


@router.get("/v1/models", responses=answered({"object": "list", "data": [_MODEL]}, "The served model."))
async def list_models(request: Request) -> dict[str, Any]:
    """List the served model."""
    return {"object": "list", "data": [_model(get_context(request))]}


@router.get("/v1/models/{model:path}", responses=answered(_MODEL, "The served model."))
async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
    """Describe the served model."""
    context = get_context(request)
    context.check_model(model)
    return _model(context)


def _model(context: ApiContext) -> dict[str, Any]:
    service, defaults = context.service, context.config.defaults
    return {
        "id": context.config.model_name,
        "object": "model",
        "created": context.config.created,
        "owned_by": "seed_jax",
        "root": context.config.model_name,
        "parent": None,
        "max_model_len": service.max_model_len,
        "prompt_style": service.style,
        "input_modalities": ["text", "image"] if service.can_encode else ["text"],
        "output_modalities": ["text", "image"] if service.can_draw else ["text"],
        "image_size": service.image_size,
        "tokens_per_image": service.tokens_per_image,
        "default_sampling_params": {
            name: getattr(defaults, name)
            for name in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "guidance_scale")
        },
    }


@router.get("/health", responses=answered({"status": "ok"}, "Ready for requests."))
async def health(request: Request) -> Response:
    """Say whether the server takes requests; 503 while it starts, shuts down, or after a failure of the engine."""
    if not get_context(request).service.is_ready:
        raise ApiError(503, "The server takes no requests.", code="not_ready")
    return JSONResponse({"status": "ok"})


@router.get(
    "/metrics",
    responses={200: {"description": "Metrics in Prometheus' text format.", "content": {"text/plain": {}}}, **ERRORS},
)
async def metrics(request: Request) -> Response:
    """Report metrics for Prometheus."""
    content, media_type = request.app.state.metrics.render()
    return Response(content, media_type=media_type)


@router.get("/media/{name}", responses={200: {"description": "An image.", "content": {"image/*": {}}}, **ERRORS})
async def media(name: str, request: Request) -> Response:
    """Return a drawn image; its name is unguessable and expires."""
    store = get_context(request).store
    path = store.find(name) if store is not None else None
    if path is None:
        raise ApiError(404, "This image does not exist, or has expired.", code="not_found")
    return FileResponse(path, headers={"Cache-Control": "private, immutable", "Content-Security-Policy": "sandbox"})
