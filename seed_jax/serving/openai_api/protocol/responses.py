"""Requests of `/v1/responses`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from seed_jax.serving.openai_api.protocol.chat import MAX_IMAGES, MaxTokens
from seed_jax.serving.openai_api.protocol.common import (
    MAX_MESSAGES,
    NEUTRAL,
    Codes,
    Content,
    DrawFields,
    ModelName,
    SamplingFields,
    StreamOptions,
    Text,
    Url,
)


class InputMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class InputImageCall(BaseModel):
    """An image of an earlier answer: its codes, or else the encoded image."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["image_generation_call"]
    result: Url | None = Field(None, description="Base64 of the image.")
    codes: Codes | None = None


class ImageGenerationTool(BaseModel):
    """OpenAI's tool for images: its presence lets the model draw, which it may anyway."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["image_generation"]
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None


class ToolChoice(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["image_generation"]


_OWN = ("tools", "tool_choice", "stop")


class ResponsesRequest(SamplingFields):
    """Body of `POST /v1/responses`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **{name: values for name, values in NEUTRAL.items() if name not in _OWN},
        "background": (False,),
        "conversation": (),
        "max_tool_calls": (),
        "previous_response_id": (),
        "prompt": (),
        "text": ({}, {"format": {"type": "text"}}),
        "top_logprobs": (0,),
    }

    model: ModelName | None = None
    input: Text | Annotated[list[InputMessage | InputImageCall], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = Field(None, description="System prompt.")
    max_output_tokens: MaxTokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    tools: Annotated[list[ImageGenerationTool], Field(max_length=4)] | None = None
    tool_choice: Literal["none", "auto"] | ToolChoice | None = Field(
        None, description='"none": no image; {"type": "image_generation"}: the answer begins with one.'
    )
    num_images: Annotated[int, Field(ge=0, le=MAX_IMAGES)] | None = None
    draw: bool | None = None
    draw_options: DrawFields | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "Draw a cat.", "tools": [{"type": "image_generation"}], "max_output_tokens": 64},
                {
                    "instructions": "Answer briefly.",
                    "input": [{"role": "user", "content": [{"type": "input_text", "text": "What is red?"}]}],
                    "tool_choice": "none",
                    "max_output_tokens": 32,
                },
            ]
        }
    )
