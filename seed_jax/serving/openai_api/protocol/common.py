"""What the requests of several endpoints share: bounds of fields, content parts, and parameters that have no effect.

Unknown parameters are refused, as OpenAI does, because a misspelt one that is ignored gives wrong answers silently.
Parameters of OpenAI's or vLLM's API that this server lacks are accepted at their neutral value, which clients send.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from seed_jax.serving.openai_api.errors import UNSUPPORTED_PARAMETER

MAX_TEXT = 16 * 2**20  # characters
MAX_TOKEN = 2**31 - 1
MAX_MESSAGES = 1024
MAX_PARTS = 256
MAX_URL = 128 * 2**20  # characters of a data URI; the limit of a body is usually lower

Text = Annotated[str, Field(max_length=MAX_TEXT)]
ModelName = Annotated[str, Field(max_length=512)]
Url = Annotated[str, Field(max_length=MAX_URL)]
Codes = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN)]], Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN)]
Modality = Literal["text", "image"]

# Parameters that say nothing about the answer.
IGNORED = frozenset(
    {
        "metadata", "prompt_cache_key", "prompt_cache_retention", "request_id", "safety_identifier", "service_tier",
        "store", "user",
    }
)  # fmt: skip
# Parameters that this server lacks, and the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include": ([],),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "min_tokens": (0,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "priority": (0,),
    "reasoning": ({},),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high"),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("low", "medium", "high"),
    "web_search_options": (),
}


class RequestModel(BaseModel):
    """Base of request bodies: strict types, no unknown parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = NEUTRAL

    @model_validator(mode="before")
    @classmethod
    def _drop_parameters_without_effect(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if name in cls.model_fields or (name not in cls.neutral and name not in IGNORED):
                kept[name] = value
            elif name in cls.neutral and value is not None and value not in cls.neutral[name]:
                raise PydanticCustomError(
                    UNSUPPORTED_PARAMETER, "Not supported by this server: leave it out", {"name": name}
                )
        return kept


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = Field(None, description="Send a last chunk with the usage.")


class DrawFields(BaseModel):
    """Options of the image decoder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    steps: Annotated[int, Field(ge=1, le=250)] | None = Field(None, description="Steps of the sampler.")
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="1 disables guidance.")
    sampler: Literal["pndm", "ddim", "dpmpp"] | None = Field(None, description="Default: the decoder's.")
    noise_level: Annotated[int, Field(ge=0, le=999)] = Field(0, description="Noise on unCLIP's image embedding.")


class ImageFormatFields(BaseModel):
    """How images of answers are encoded."""

    output_format: Literal["png", "webp", "jpeg"] | None = Field(None, description="Default: png.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of WebP and JPEG; default 90."
    )


class SamplingFields(RequestModel):
    """Decoding options; those left out have the server's defaults, which `GET /v1/models` reports."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 decodes greedily.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Nucleus sampling.")
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN)] | None = Field(None, description="0 or -1: all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        None, description="Reduced modulo 2**32; without it a random seed is drawn. Choice i uses seed + i."
    )
    guidance_scale: Annotated[float, Field(ge=-100, le=100)] | None = Field(
        None, description="Classifier-free guidance of the language model; 1 disables it."
    )
    negative_prompt: Annotated[str, Field(max_length=65_536)] | None = Field(
        None, description="Text that guidance moves away from."
    )
    beams: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="Width of the beam search.")


Stop = Annotated[str, Field(min_length=1, max_length=1024)]
StopStrings = Stop | Annotated[list[Stop], Field(max_length=16)]


class ImageUrl(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    url: Url
    detail: str | None = Field(None, description="Without effect.", max_length=64)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text", "input_text", "output_text"]
    text: Text


class ImageUrlPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["image_url", "input_image"]
    image_url: ImageUrl | Url


class ImageCodesPart(BaseModel):
    """An image as its codes, the form in which `segments` of answers have it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["image"]
    codes: Codes


ContentPart = Annotated[TextPart | ImageUrlPart | ImageCodesPart, Field(discriminator="type")]
Content = Text | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)]
