"""`/tokenize`, `/detokenize` and `/v1/embeddings`: texts and images as tokens, codes and vectors."""

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from seed_jax.inference.generation.segments import ImageSegment, parse_segments
from seed_jax.serving.openai_api.answers import segment_entries
from seed_jax.serving.openai_api.context import ApiContext, get_context, image_entry, image_format, reduce_seed
from seed_jax.serving.openai_api.errors import ApiError
from seed_jax.serving.openai_api.event_stream import gather_or_cancel, until_disconnect
from seed_jax.serving.openai_api.protocol.images import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from seed_jax.serving.openai_api.routes.documents import answered

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize", responses=answered({"tokens": [1, 263, 11203], "count": 3, "max_model_len": 2048}, "The tokens.")
)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Encode a prompt, messages, or images."""
    context = get_context(request)
    context.check_model(body.model)
    answer = _tokenize(context, body)
    return JSONResponse(await until_disconnect(request, answer, context.config.request_timeout_s))


async def _tokenize(context: ApiContext, body: TokenizeRequest) -> dict[str, Any]:
    service, vocabulary = context.service, context.service.vocabulary
    answer: dict[str, Any] = {}
    with service.reserve():
        if body.images is not None:
            images = await context.load_images([(url, f"images.{number}") for number, url in enumerate(body.images)])
            codes = await service.encode(images)
            tokens = [token for one in codes for token in vocabulary.image_ids(one)]
            answer["images"] = [{"type": "image", "index": index, "codes": one} for index, one in enumerate(codes)]
        elif body.messages is not None:
            messages = await context.messages(body.messages)
            tokens = list((await service.prepare(messages, context.config.defaults)).ids)
        else:
            assert body.prompt is not None
            tokens = await service.encode_text(body.prompt, bos=body.add_special_tokens)
    answer |= {"tokens": tokens, "count": len(tokens), "max_model_len": service.max_model_len}
    if body.return_token_strs:
        answer["token_strs"] = vocabulary.pieces(tokens)
    return answer


@router.post("/detokenize", responses=answered({"prompt": "a dog", "segments": []}, "The text, or the images."))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """Decode token ids as text and segments, or draw images from codes."""
    context = get_context(request)
    context.check_model(body.model)
    if body.codes is not None:
        answer = _draw(context, body, request)
        return JSONResponse(await until_disconnect(request, answer, context.config.request_timeout_s))
    vocabulary, tokens = context.service.vocabulary, body.tokens or []
    if tokens and max(tokens) >= vocabulary.size:
        message = f"tokens has ids outside 0 to {vocabulary.size - 1}, those of this model's vocabulary."
        raise ApiError(400, message, param="tokens", code="invalid_value")

    def decode() -> dict[str, Any]:
        segments = parse_segments(tokens, vocabulary)
        return {"prompt": vocabulary.decode(tokens, skip_special=True), "segments": segment_entries(segments)}

    return JSONResponse(await asyncio.to_thread(decode))


async def _draw(context: ApiContext, body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    service, codes = context.service, body.codes or []
    for one in codes:
        service.vocabulary.image_ids(one)  # raises UserError for codes of another tokenizer
    if not service.can_draw:
        raise ApiError(400, "This server has no image decoder: it draws no images.", code="no_image_decoder")
    seed = reduce_seed(body.seed)
    options, encoding = context.draw_options(body.draw_options), image_format(body)
    writer = context.image_writer(request)
    with service.reserve():
        drawing = [service.draw(one, seed + number, options) for number, one in enumerate(codes)]
        drawn = await gather_or_cancel(drawing)
        written = [await writer.write(image, encoding, as_file=True) for image in drawn]
    return {"images": [image_entry(index, image) for index, image in enumerate(written)], "seed": seed}


@router.post(
    "/v1/embeddings",
    responses=answered(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.1, -0.2]}],
            "model": "seed_llama",
            "usage": {"prompt_tokens": 34, "total_tokens": 34},
        },
        "The vectors.",
    ),
)
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Embed images, and with `--clip` texts in the same space.

    An image's vector is its generation embedding, which predicts CLIP's image embedding from the 32 codes.
    """
    context = get_context(request)
    context.check_model(body.model)
    answer = _embed(context, body)
    return JSONResponse(await until_disconnect(request, answer, context.config.request_timeout_s))


async def _embed(context: ApiContext, body: EmbeddingRequest) -> dict[str, Any]:
    service = context.service
    inputs = body.input if isinstance(body.input, list) else [body.input]
    with service.reserve():
        (contents,) = await context.contents([inputs], "input")
        texts = [one for one in contents if isinstance(one, str)]
        images = [one for one in contents if not isinstance(one, str)]
        if texts and context.clip is None:
            message = "This server embeds no texts: it was started without --clip, CLIP's text encoder."
            raise ApiError(400, message, param="input", code="no_text_encoder")
        to_encode = [one for one in images if not isinstance(one, ImageSegment)]
        encoded = iter(await service.encode(to_encode))
        codes = [one.codes if isinstance(one, ImageSegment) else next(encoded) for one in images]
        image_rows = iter(await service.embed(codes) if codes else ())
        text_rows = iter(await asyncio.to_thread(context.clip.embed_texts, texts) if texts else ())
        rows = [next(text_rows if isinstance(one, str) else image_rows) for one in contents]
    size = service.tokens_per_image
    lengths = [len(await service.encode_text(text)) for text in texts]
    count = len(images) * size + sum(lengths)
    as_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(row) if as_base64 else row.tolist()}
        for index, row in enumerate(rows)
    ]
    return {
        "object": "list",
        "data": data,
        "model": context.config.model_name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode()
