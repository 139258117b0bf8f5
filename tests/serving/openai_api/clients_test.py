"""Clients besides the `openai` package: LiteLLM itself, and the form that Open WebUI reads."""

import base64
import json

import pytest

from tests.serving.conftest import API_KEY
from tests.serving.openai_api.server_test import data_uri, decoded, make_image

MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_uri(make_image())}},
            {"type": "text", "text": "draw"},
        ],
    }
]
OPTIONS = {"max_tokens": 48, "seed": 5, "top_p": 0.9, "num_images": 1}


@pytest.fixture(scope="module")
def answer(server):
    """Return the message of a whole answer of text and an image."""
    response = server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, **OPTIONS})
    return response.raise_for_status().json()["choices"][0]["message"]


@pytest.mark.slow
def test_a_stream_is_what_open_webui_reads(server, answer):
    """Its middleware takes strings from `delta.content`, and PNG data URIs of type `image_url` from `delta.images`."""
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, **OPTIONS}
    text, images = "", []
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            delta = choice["delta"]
            assert isinstance(delta.get("content") or "", str)
            text += delta.get("content") or ""
            images += [entry for entry in delta.get("images", []) if entry["type"] == "image_url"]
    assert line == "" or line == "data: [DONE]"
    assert text == answer["content"]
    (image,) = images
    assert image["image_url"]["url"] == answer["images"][0]["image_url"]["url"]
    header, _, content = image["image_url"]["url"].partition(",")
    assert header == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def litellm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks GitHub
        yield pytest.importorskip("litellm")


def complete(litellm, server, **options):
    extra = {"num_images": OPTIONS["num_images"]}
    return litellm.completion(
        model="custom_openai/tiny", api_base=f"{server.url}/v1", api_key=API_KEY, messages=MESSAGES, max_tokens=48,
        seed=5, top_p=0.9, extra_body=extra, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_litellm_sends_and_gets_images(litellm, server, answer):
    response = complete(litellm, server)
    message = response.choices[0].message
    assert message.content == answer["content"]
    (image,) = message.images
    assert image["image_url"]["url"] == answer["images"][0]["image_url"]["url"]
    assert decoded(image["image_url"]["url"]).size == (64, 64)
    assert response.usage.completion_tokens == 48


@pytest.mark.slow
def test_litellm_streams_text_and_images(litellm, server, answer):
    deltas = [chunk.choices[0].delta for chunk in complete(litellm, server, stream=True) if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == answer["content"]
    images = [image for delta in deltas for image in getattr(delta, "images", None) or []]
    assert [image["image_url"]["url"] for image in images] == [answer["images"][0]["image_url"]["url"]]
