"""What the OpenAPI document says about responses."""

from typing import Any

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    400: "The request cannot be answered: malformed JSON, an unknown parameter, an unreadable image, too many tokens.",
    401: "The API key is missing or wrong.",
    403: "The host name or the origin is not allowed.",
    404: "Unknown model.",
    408: "The body did not arrive in time.",
    413: "The body or an image is too large.",
    422: "A field has a wrong type or is out of range.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The server failed.",
    503: "The server starts or shuts down.",
    504: "The answer took too long.",
}
_EXAMPLE = {"error": {"message": "n: Input should be less than or equal to 16.", "type": "invalid_request_error",
                      "param": "n", "code": "invalid_value"}}  # fmt: skip

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {"application/json": {"schema": _ERROR_SCHEMA, "example": _EXAMPLE}},
    }
    for status, description in _STATUSES.items()
}
_OBJECT = {"type": "object"}


def answered(example: Any, description: str = "The answer.") -> dict[int | str, dict[str, Any]]:
    """Return the responses of an endpoint that answers with a JSON object."""
    content = {"application/json": {"schema": _OBJECT, "example": example}}
    return {200: {"description": description, "content": content}, **ERRORS}


_CHAT_EXAMPLE = {
    "id": "chatcmpl-0", "object": "chat.completion", "created": 1780000000, "model": "seed_llama",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Here it is.",
                "images": [{"type": "image_url", "index": 0, "image_url": {"url": "data:image/png;base64,..."}}],
                "segments": [
                    {"index": 0, "type": "text", "text": "Here it is."},
                    {"index": 1, "type": "image", "codes": [17] * 32, "image_index": 0},
                ],
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 38, "total_tokens": 50},
}  # fmt: skip
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, server-sent events.",
        "content": {
            "application/json": {"schema": _OBJECT, "example": _CHAT_EXAMPLE},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **ERRORS,
}
