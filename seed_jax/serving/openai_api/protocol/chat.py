"""Requests of `/v1/chat/completions` and `/v1/completions`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from seed_jax.serving.openai_api.protocol.common import (
    MAX_MESSAGES,
    MAX_PARTS,
    Content,
    ContentPart,
    DrawFields,
    ImageFormatFields,
    ImageUrlPart,
    Modality,
    ModelName,
    SamplingFields,
    StopStrings,
    StreamOptions,
    Text,
    TokenId,
)

MAX_CHOICES = 16
MAX_IMAGES = 64
MaxTokens = Annotated[int, Field(ge=1, le=2**20)]
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5Er"
    "kJggg=="
)


class ChatMessage(BaseModel):
    """A message; other fields, which clients copy from answers, have no effect."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    images: Annotated[list[ImageUrlPart], Field(max_length=MAX_IMAGES)] | None = Field(
        None, description="Images of an earlier answer, after its text."
    )
    segments: Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None = Field(
        None, description="Text and images (as codes) of an earlier answer, in order; replaces content and images."
    )

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not self.images and not self.segments:
            raise ValueError("a message needs content")
        return self


class AnswerFields(SamplingFields, ImageFormatFields):
    """What concerns the form of answers, of chat and of completions."""

    model: ModelName | None = Field(None, description="Name of the served model; may be left out.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Number of choices.")
    stop: StopStrings | None = Field(None, description="Strings that end an answer, 1,024 bytes in all.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    modalities: Annotated[list[Modality], Field(min_length=1, max_length=2)] | None = Field(
        None,
        description='["text"]: no image; ["image"]: the answer begins with an image; both: the model decides.',
    )
    logprobs: Annotated[bool | Annotated[int, Field(ge=0, le=1)], Field()] | None = Field(
        None, description="Log-probabilities of the generated tokens, among those that the image grammar allows."
    )
    num_images: Annotated[int, Field(ge=0, le=MAX_IMAGES)] | None = Field(None, description="Exact number of images.")
    draw: bool | None = Field(None, description="false: leave images as codes in `segments`.")
    draw_options: DrawFields | None = None

    @model_validator(mode="after")
    def _beams_have_one_choice(self) -> Self:
        if (self.beams or 1) > 1 and (self.n or 1) > 1:
            raise ValueError("n must be 1 with beams above 1")
        return self


class ChatCompletionRequest(AnswerFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = Field(None, description="Goes before max_tokens.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description='"auto" drops the oldest messages of a conversation that is too long.'
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "text", "text": "What is this?"},
                                {"type": "image_url", "image_url": {"url": _PIXEL}},
                            ],
                        }
                    ],
                    "modalities": ["text"],
                    "max_tokens": 64,
                },
                {"messages": [{"role": "user", "content": "Draw a cat."}], "modalities": ["image"], "seed": 3},
            ]
        }
    )


class CompletionRequest(AnswerFields):
    """Body of `POST /v1/completions`: prompts without role markers."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: MaxTokens | None = Field(None, description="Default 16, as OpenAI's.")

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "A photo of", "max_tokens": 16}]})

    @property
    def prompts(self) -> list[Any]:
        """Return one text or list of token ids per prompt."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
