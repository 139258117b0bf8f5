"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, for every fault of a request.

Messages of libraries and tracebacks never reach a client: what is not an `ApiError`, a `UserError` or a validation
error becomes status 500 without details, and is logged with the request's id.
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from seed_jax.errors import UserError
from seed_jax.serving.engine.request import (
    EngineClosedError,
    EngineDeadError,
    EngineError,
    QueueFullError,
    SlowReaderError,
)
from seed_jax.serving.service import ContextLengthError

INVALID_REQUEST = "invalid_request_error"
AUTHENTICATION = "authentication_error"
PERMISSION = "permission_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"
_TYPES = {401: AUTHENTICATION, 403: PERMISSION, 429: RATE_LIMIT}
_MAX_REPORTED = 3  # validation errors in one message
_MAX_MESSAGE = 1000
# Kinds of validation errors that are about the existence of a parameter, not about its value.
UNSUPPORTED_PARAMETER = "unsupported_parameter"
_PARAMETER_KINDS = {"extra_forbidden": "unknown_parameter", UNSUPPORTED_PARAMETER: UNSUPPORTED_PARAMETER}


class ApiError(Exception):
    """A fault that a client is told about.

    Args:
        status: HTTP status.
        message: one sentence for the client.
        param: the field at fault.
        code: a word for programs, such as "model_not_found".
        retry_after_s: seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        kind = _TYPES.get(self.status, SERVER if self.status >= 500 else INVALID_REQUEST)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s)))
        return headers

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers())


def from_exception(error: BaseException) -> ApiError:
    """Return what a client is told about an exception; unexpected ones are logged and told without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, EngineClosedError):
        return ApiError(503, "The server is shutting down or not ready yet.", code="not_ready", retry_after_s=1.0)
    if isinstance(error, EngineDeadError):
        return ApiError(503, "The engine has failed: restart the server.", code="engine_failed")
    if isinstance(error, SlowReaderError):
        return ApiError(408, "The stream was not read fast enough.", code="slow_reader")
    logging.error("A request failed.", exc_info=error)
    return ApiError(500, "The server failed to answer this request; its log has the details.", code="internal_error")


def from_validation_errors(errors: Sequence[Any]) -> ApiError:
    """Return one error for the problems that a request's validation found: 422 for values, 400 for other faults."""
    problems, params, code = [], [], None
    status = 422
    for problem in errors[:_MAX_REPORTED]:
        # Names of union members ("function-after[...]", "TextPart") are of no use to a client.
        place = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
        param = ".".join(part for part in place if part.isidentifier() or part.isdigit())
        if problem["type"] == "json_invalid":
            return ApiError(400, "The body is not valid JSON.", code="invalid_json")
        if problem["type"] in _PARAMETER_KINDS:
            status, code = 400, _PARAMETER_KINDS[problem["type"]]
        param = problem.get("ctx", {}).get("name", param) if problem["type"] == UNSUPPORTED_PARAMETER else param
        message = "Unknown parameter" if problem["type"] == "extra_forbidden" else problem["msg"]
        problems.append(f"{param or 'body'}: {message}")
        params.append(param)
    more = len(errors) - len(problems)
    text = "; ".join(problems) + (f"; and {more} more" if more > 0 else "") + "."
    return ApiError(status, text[:_MAX_MESSAGE], param=(params or [None])[0] or None, code=code or "invalid_value")


def install_handlers(app: FastAPI) -> None:
    """Replace FastAPI's and Starlette's error bodies by OpenAI's."""

    async def on_validation_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return from_validation_errors(error.errors()).response()

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        messages = {
            400: "The request is malformed.",
            404: f"There is no endpoint {request.method} {request.url.path[:200]}.",
            405: f"{request.url.path[:200]} does not answer {request.method}.",
            413: "The body is too large.",
        }
        message = messages.get(error.status_code, "The request failed.")
        codes = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
        response = ApiError(error.status_code, message, code=codes.get(error.status_code)).response()
        response.headers.update(error.headers or {})
        return response

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return from_exception(error).response()

    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ApiError, on_error)
    for kind in (UserError, EngineError):
        app.add_exception_handler(kind, on_error)
    # Other exceptions reach `GateMiddleware`.
