"""Requests of `/v1/images/generations`, `/v1/embeddings`, `/tokenize` and `/detokenize`."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from seed_jax.serving.openai_api.protocol.chat import ChatMessage
from seed_jax.serving.openai_api.protocol.common import (
    MAX_MESSAGES,
    NEUTRAL,
    Codes,
    ContentPart,
    DrawFields,
    ImageFormatFields,
    ModelName,
    RequestModel,
    SamplingFields,
    Text,
    TokenId,
    Url,
)

MAX_GENERATED = 16  # images of one request
MAX_INPUTS = 256


class ImageGenerationRequest(SamplingFields, ImageFormatFields):
    """Body of `POST /v1/images/generations`; `POST /v1/images/edits` takes the same fields as a form."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **{name: values for name, values in NEUTRAL.items() if name != "response_format"},
        "background": ("auto", "opaque"),
        "input_fidelity": ("low", "high"),
        "mask": (),
        "moderation": ("auto", "low"),
        "partial_images": (0,),
        "quality": ("auto", "standard", "low", "medium", "high", "hd"),
        "style": ("vivid", "natural"),
    }

    model: ModelName | None = None
    prompt: Annotated[str, Field(min_length=1, max_length=32_000)]
    n: Annotated[int, Field(ge=1, le=MAX_GENERATED)] | None = None
    size: Annotated[str, Field(max_length=32)] | None = Field(
        None, description='"auto", or the size that the decoder draws.'
    )
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Default: b64_json.")
    stream: bool | None = None
    draw_options: DrawFields | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a red circle", "n": 2, "seed": 1}]})


EmbeddingInput = Text | ContentPart
_EMBEDDING_EXAMPLES: dict[str, Any] = {
    "examples": [{"input": [{"type": "image", "codes": [5] * 32}], "encoding_format": "float"}]
}


class EmbeddingRequest(RequestModel):
    """Body of `POST /v1/embeddings`."""

    model: ModelName | None = None
    input: EmbeddingInput | Annotated[list[EmbeddingInput], Field(min_length=1, max_length=MAX_INPUTS)] = Field(
        description="Images as image_url or codes; texts need the server's --clip."
    )
    encoding_format: Literal["float", "base64"] | None = None

    model_config = ConfigDict(json_schema_extra=_EMBEDDING_EXAMPLES)


class TokenizeRequest(RequestModel):
    """Body of `POST /tokenize`: one of a prompt, messages, or images."""

    model: ModelName | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    images: Annotated[list[Url], Field(min_length=1, max_length=MAX_INPUTS)] | None = Field(
        None, description="Images, which become codes."
    )
    add_special_tokens: bool = Field(True, description="Begin a prompt with BOS; messages always begin with it.")
    add_generation_prompt: Literal[True] = True
    return_token_strs: bool | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a dog"}]})

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if sum(value is not None for value in (self.prompt, self.messages, self.images)) != 1:
            raise ValueError("give one of prompt, messages and images")
        return self


class DetokenizeRequest(RequestModel, ImageFormatFields):
    """Body of `POST /detokenize`: token ids become text and segments, codes become images."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20)] | None = None
    codes: Annotated[list[Codes], Field(min_length=1, max_length=MAX_GENERATED)] | None = Field(
        None, description="Codes of images to draw."
    )
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(None, description="Image i uses seed + i.")
    draw_options: DrawFields | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [1, 263]}]})

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if (self.tokens is None) == (self.codes is None):
            raise ValueError("give tokens or codes")
        return self
