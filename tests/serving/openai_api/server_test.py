"""A server process through the `openai` package and plain HTTP: text and images in and out, errors, disconnections."""

import base64
import contextlib
import io
import json
import socket
import threading

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from seed_jax.inference.chat.prompts import ASSISTANT, USER, Message, build_prompt
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from tests.serving.conftest import API_KEY

CODES = [number * 3 for number in range(32)]


def make_image(seed=0, size=(40, 60)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


def encoded(image, image_format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def data_uri(image):
    return f"data:image/png;base64,{base64.b64encode(encoded(image)).decode()}"


def decoded(url):
    assert url.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def user(*parts):
    """Return a user message of texts, images and codes."""
    forms = {
        str: lambda part: {"type": "text", "text": part},
        list: lambda part: {"type": "image", "codes": part},
        Image.Image: lambda part: {"type": "image_url", "image_url": {"url": data_uri(part)}},
    }
    return {"role": "user", "content": [forms[type(part)](part) for part in parts]}


def chat(client, messages, **options):
    extra = {name: options.pop(name) for name in EXTENSIONS if name in options}
    return client.chat.completions.create(model="tiny", messages=messages, extra_body=extra, **options)


EXTENSIONS = ("modalities", "num_images", "top_k", "min_p", "guidance_scale", "draw", "draw_options", "output_format",
              "truncation", "beams")  # fmt: skip


def generate(model, messages, **options):
    """Return the answer of `seed-jax generate` to messages."""
    prompt = build_prompt(messages, model.style, model.generator.vocabulary)
    (answer,) = model.generator.generate([Request(prompt, SamplingParams(**options))])
    return answer


def without_index(segments):
    return [{key: value for key, value in one.items() if key in ("type", "text", "codes")} for one in segments]


def text_of(answer):
    return "".join(segment.text for segment in answer.segments if isinstance(segment, TextSegment))


@pytest.fixture(scope="module")
def answered(client):
    """Return a whole answer of text and two images to a message of text and an image."""
    return chat(client, [user("From", make_image(), "draw")], max_tokens=90, seed=5, num_images=2, top_p=0.9)


def test_an_answer_is_that_of_generate_with_the_same_seed(answered, model):
    codes = model.encode(make_image())
    message = Message(USER, (TextSegment("From"), ImageSegment(codes[0]), TextSegment("draw")))
    expected = generate(model, [message], max_new_tokens=90, seed=5, num_images=2, temperature=1.0, top_p=0.9)
    (choice,) = answered.choices
    assert without_index(choice.message.segments) == [segment.to_dict() for segment in expected.segments]
    assert choice.message.content == text_of(expected)
    assert choice.finish_reason == "length"
    assert answered.seed == 5
    usage = answered.usage
    assert usage.completion_tokens == len(expected.ids)
    assert (usage.prompt_tokens_details.image_tokens, usage.completion_tokens_details.image_tokens) == (34, 68)
    drawn = model.draw(expected.segments, seed=5)
    for entry, image in zip(choice.message.images, drawn, strict=True):
        difference = np.abs(np.asarray(decoded(entry["image_url"]["url"]), int) - np.asarray(image, int))
        assert difference.max() <= 1  # the steps are separate programs here


def test_a_stream_is_the_same_answer_in_order(client, answered):
    messages = [user("From", make_image(), "draw")]
    extra = {"num_images": 2}
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=90, seed=5, top_p=0.9, extra_body=extra, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    whole = answered.choices[0].message
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert deltas[0].content or deltas[0].images or deltas[0].segments  # the role alone would fake a first token
    assert "".join(delta.content or "" for delta in deltas) == whole.content
    images = [image for delta in deltas for image in getattr(delta, "images", None) or []]
    segments = [segment for delta in deltas for segment in getattr(delta, "segments", None) or []]
    assert images == whole.images
    assert [image["index"] for image in images] == [0, 1]
    assert segments == whole.segments
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == answered.usage.completion_tokens


def test_the_accumulating_client_gets_whole_images(client, answered):
    arguments = {"max_tokens": 90, "seed": 5, "top_p": 0.9, "extra_body": {"num_images": 2}}
    messages = [user("From", make_image(), "draw")]
    with client.chat.completions.stream(model="tiny", messages=messages, **arguments) as stream:
        for _ in stream:
            pass
        message = stream.current_completion_snapshot.choices[0].message
    assert message.images == answered.choices[0].message.images
    assert message.segments == answered.choices[0].message.segments


def test_an_answer_sent_back_is_the_same_conversation(server, client, answered, model):
    """A client may send an answer's segments, or its text and drawn images: both have the codes that were generated."""
    first, message = user("From", make_image(), "draw"), answered.choices[0].message
    images = [{"type": "image_url", "image_url": image["image_url"]} for image in message.images]
    as_segments = {"role": "assistant", "content": message.content, "segments": message.segments}
    as_images = {"role": "assistant", "content": images}

    def tokens(*messages):
        return server.http.post("/tokenize", json={"messages": messages}).raise_for_status().json()["tokens"]

    vocabulary = model.generator.vocabulary
    ids = tokens(first, as_segments, user("And now?"))
    history = [
        Message(USER, (TextSegment("From"), ImageSegment(model.encode(make_image())[0]), TextSegment("draw"))),
        Message(ASSISTANT, tuple(_segment(one) for one in message.segments)),
        Message(USER, (TextSegment("And now?"),)),
    ]
    assert ids == build_prompt(history, "vicuna", vocabulary)
    for segment in message.segments:
        if segment["type"] == "image":
            position = tokens(first, as_images, user("And now?"))
            wanted = vocabulary.image_ids(segment["codes"])
            assert any(position[start : start + 34] == wanted for start in range(len(position)))


def _segment(entry):
    return TextSegment(entry["text"]) if entry["type"] == "text" else ImageSegment(tuple(entry["codes"]))


@pytest.mark.parametrize(
    ("modalities", "options", "expected"),
    [
        (["text"], {"max_tokens": 40}, {"mode": "text", "max_new_tokens": 40}),
        (["image"], {"max_tokens": 40}, {"mode": "image", "max_new_tokens": 40}),
        (["text", "image"], {"max_tokens": 40, "temperature": 0.0}, {"max_new_tokens": 40, "temperature": 0.0}),
        (
            ["text"],
            {"max_tokens": 30, "temperature": 0.8, "top_k": 20, "min_p": 0.01, "stop": ["e"], "seed": 2**32 + 7},
            {"mode": "text", "max_new_tokens": 30, "temperature": 0.8, "top_k": 20, "min_p": 0.01, "stop": ("e",),
             "seed": 7},
        ),
        (
            ["image"],
            {"max_tokens": 36, "guidance_scale": 2.0},
            {"mode": "image", "max_new_tokens": 36, "guidance_scale": 2.0},
        ),
    ],
)  # fmt: skip
def test_parameters_have_the_meaning_that_they_have_in_generate(client, model, modalities, options, expected):
    expected = {"temperature": 1.0, "top_p": 0.5, "seed": 3, **expected}
    found = chat(client, [user("a dog")], **{"seed": 3, "modalities": modalities, "draw": False, **options})
    wanted = generate(model, [Message(USER, (TextSegment("a dog"),))], **expected)
    message = found.choices[0].message
    assert without_index(message.segments) == [segment.to_dict() for segment in wanted.segments]
    assert not hasattr(message, "images")
    reasons = {"eos": "stop", "stop": "stop", "length": "length"}
    assert found.choices[0].finish_reason == reasons[wanted.finish_reason]


def test_choices_have_seeds_in_sequence_and_share_their_prompt(client, model):
    found = chat(client, [user("a cat")], n=3, seed=2**32 - 1, max_tokens=20, modalities=["text"], logprobs=True)
    for choice, seed in zip(found.choices, (2**32 - 1, 0, 1), strict=True):
        options = {"max_new_tokens": 20, "mode": "text", "temperature": 1.0, "top_p": 0.5, "seed": seed}
        wanted = generate(model, [Message(USER, (TextSegment("a cat"),))], **options)
        assert choice.message.content == text_of(wanted)
        assert len(choice.logprobs.content) == len(wanted.ids)
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)
    assert found.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in found.choices)


def test_roles_are_joined_and_a_system_message_comes_first(server, model):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]
    tokens = server.http.post("/tokenize", json={"messages": messages, "return_token_strs": True}).json()
    parts = [TextSegment("one"), TextSegment("\n"), TextSegment("two")]
    vocabulary = model.generator.vocabulary
    assert tokens["tokens"] == build_prompt([Message(USER, parts)], "vicuna", vocabulary, system="Be brief.")
    assert tokens["count"] == len(tokens["token_strs"]) == len(tokens["tokens"])
    assert tokens["max_model_len"] == 256


def test_a_long_conversation_is_refused_or_loses_its_oldest_messages(client, server):
    history = [message for _ in range(12) for message in (user("one two three four"), _assistant("five six"))]
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, [*history, user("last")], max_tokens=20)
    assert caught.value.code == "context_length_exceeded"
    found = chat(client, [*history, user("last")], max_tokens=20, truncation="auto", modalities=["text"])
    assert 0 < found.usage.prompt_tokens <= 236


def _assistant(text):
    return {"role": "assistant", "content": text}


def test_completions_continue_plain_prompts(client, model):
    vocabulary = model.generator.vocabulary
    prompt = [vocabulary.bos, *vocabulary.encode("a dog and <img>", plain=True)]
    options = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 0.5, "seed": 4, "mode": "text"}
    (wanted,) = model.generator.generate([prompt], SamplingParams(**options))
    arguments = {"model": "tiny", "seed": 4, "extra_body": {"modalities": ["text"]}}
    found = client.completions.create(prompt=["a dog and <img>", "a cat"], **arguments)
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.choices[0].text == text_of(wanted)
    assert found.usage.prompt_tokens > len(prompt)
    assert client.completions.create(prompt=prompt, **arguments).choices[0].text == text_of(wanted)
    chunks = client.completions.create(prompt=prompt, stream=True, **arguments)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text_of(wanted)


RESPONSE = {"model": "tiny", "input": "draw", "max_output_tokens": 90, "temperature": 1.0, "top_p": 0.9}


def test_a_response_has_text_and_images_in_order(client, model):
    found = client.responses.create(**RESPONSE, extra_body={"seed": 5, "num_images": 2})
    options = {"max_new_tokens": 90, "seed": 5, "num_images": 2, "temperature": 1.0, "top_p": 0.9}
    wanted = generate(model, [Message(USER, (TextSegment("draw"),))], **options)
    kinds = {"message": "text", "image_generation_call": "image"}
    assert [kinds[item.type] for item in found.output] == [segment.to_dict()["type"] for segment in wanted.segments]
    assert found.output_text == text_of(wanted)
    assert found.status == "incomplete"
    assert found.incomplete_details.reason == "max_output_tokens"
    for item in found.output:
        if item.type == "image_generation_call":
            assert Image.open(io.BytesIO(base64.b64decode(item.result))).size == (64, 64)
            assert item.status == "completed"

    with client.responses.stream(**RESPONSE, extra_body={"seed": 5, "num_images": 2}) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert [item.type for item in last.response.output] == [item.type for item in found.output]
    assert [item.result for item in last.response.output if item.type == "image_generation_call"] == [
        item.result for item in found.output if item.type == "image_generation_call"
    ]
    added = [event.output_index for event in events if event.type == "response.output_item.added"]
    assert added == list(range(len(found.output)))
    for index, item in enumerate(found.output):
        own = [event.type.removeprefix("response.") for event in events if getattr(event, "output_index", -1) == index]
        if item.type == "message":
            assert own[:2] == ["output_item.added", "content_part.added"]
            assert own[-3:] == ["output_text.done", "content_part.done", "output_item.done"]
            assert set(own[2:-3]) == {"output_text.delta"}
        else:
            steps = ["in_progress", "generating", "completed"]
            assert own == ["output_item.added", *(f"image_generation_call.{one}" for one in steps), "output_item.done"]


def test_a_response_goes_on_from_its_own_output(client):
    first = client.responses.create(**RESPONSE, extra_body={"seed": 5, "num_images": 1})
    items = [{"role": "user", "content": [{"type": "input_text", "text": "draw"}]}]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items.append({"role": "user", "content": "and?"})
    found = client.responses.create(
        model="tiny", input=items, instructions="Be brief.", max_output_tokens=10, tool_choice="none"
    )
    assert found.usage.input_tokens > first.usage.total_tokens - 1
    assert {item.type for item in found.output} == {"message"}
    image = client.responses.create(
        model="tiny", input="x", max_output_tokens=36, tools=[{"type": "image_generation"}],
        tool_choice={"type": "image_generation"},
    )  # fmt: skip
    assert image.output[0].type == "image_generation_call"


def test_images_are_generated_and_edited(client, model):
    found = client.images.generate(model="tiny", prompt="a red circle", n=2, extra_body={"seed": 8}, size="64x64")
    assert found.size == "64x64"
    for entry, seed in zip(found.data, (8, 9), strict=True):
        options = {
            "max_new_tokens": 34,
            "mode": "image",
            "num_images": 1,
            "temperature": 1.0,
            "top_p": 0.5,
            "seed": seed,
        }
        wanted = generate(model, [Message(USER, (TextSegment("a red circle"),))], **options)
        (drawn,) = model.draw(wanted.segments, seed=seed)
        image = Image.open(io.BytesIO(base64.b64decode(entry.b64_json)))
        assert np.abs(np.asarray(image, int) - np.asarray(drawn, int)).max() <= 1
    files = [("one.png", encoded(make_image(1))), ("two.jpg", encoded(make_image(2), "JPEG"))]
    edited = client.images.edit(
        model="tiny", prompt="Add a hat.", image=files, response_format="url", output_format="webp"
    )
    assert decoded(edited.data[0].url).format == "WEBP"
    assert edited.usage.input_tokens_details.image_tokens == 68
    assert client.images.edit(model="tiny", prompt="Add a hat.", image=files[0], n=1).data[0].b64_json
    events = list(client.images.generate(model="tiny", prompt="x", n=2, stream=True, output_format="jpeg"))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert Image.open(io.BytesIO(base64.b64decode(events[0].b64_json))).format == "JPEG"


def test_images_and_codes_are_tokenized_and_embedded(client, server, model):
    codes = [list(one) for one in model.encode([make_image(1), make_image(2)])]
    found = server.http.post("/tokenize", json={"images": [data_uri(make_image(1)), data_uri(make_image(2))]}).json()
    assert [image["codes"] for image in found["images"]] == codes
    text = server.http.post("/detokenize", json={"tokens": found["tokens"]}).json()
    assert [segment["codes"] for segment in text["segments"]] == codes
    drawn = server.http.post("/detokenize", json={"codes": codes, "seed": 3}).json()["images"]
    wanted = model.draw([ImageSegment(tuple(one)) for one in codes], seed=3)
    for entry, image in zip(drawn, wanted, strict=True):
        difference = np.abs(np.asarray(decoded(entry["image_url"]["url"]), int) - np.asarray(image, int))
        assert difference.max() <= 1
    body = [{"type": "image_url", "image_url": {"url": data_uri(make_image(1))}}, {"type": "image", "codes": codes[1]}]
    embeddings = [
        np.array([one.embedding for one in client.embeddings.create(model="tiny", input=body, **options).data])
        for options in ({}, {"encoding_format": "float"})  # by default the package asks for base64
    ]
    expected = model.image_tokenizer().embed_codes(np.array(codes, np.int32)).reshape(2, -1)
    for found in embeddings:
        np.testing.assert_allclose(found, expected, atol=1e-5)


MESSAGES = [{"role": "user", "content": "a dog"}]
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def _with(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("chat/completions", {"messages": MESSAGES, "model": "other"}, 404, "model_not_found"),
        ("chat/completions", {"messages": []}, 422, "invalid_value"),
        ("chat/completions", {}, 422, "invalid_value"),
        ("chat/completions", [], 422, "invalid_value"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 422, "invalid_value"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, 400, None),
        ("chat/completions", {"messages": [{"role": "user", "content": None}]}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "temperatur_": 1}, 400, "unknown_parameter"),
        ("chat/completions", {"messages": MESSAGES, "tools": [{"type": "function"}]}, 400, "unsupported_parameter"),
        ("chat/completions", {"messages": MESSAGES, "frequency_penalty": 0.5}, 400, "unsupported_parameter"),
        ("chat/completions", {"messages": MESSAGES, "n": 10**6}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "n": 16}, 400, None),  # more than the server has places
        ("chat/completions", {"messages": MESSAGES, "n": 2, "beams": 2}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "beams": 3}, 400, None),
        ("chat/completions", {"messages": MESSAGES, "temperature": -1}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "temperature": "1"}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 0}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "stop": ["x"] * 99}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "stop": ["x" * 900, "y" * 900]}, 400, None),
        ("chat/completions", {"messages": MESSAGES, "modalities": ["audio"]}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "num_images": 20}, 400, None),
        ("chat/completions", {"messages": MESSAGES, "modalities": ["text"], "num_images": 1}, 400, None),
        ("chat/completions", {"messages": MESSAGES, "draw_options": {"steps": 10**6}}, 422, "invalid_value"),
        ("chat/completions", {"messages": MESSAGES, "draw_options": {"noise_level": 999, "steps": 0}}, 422,
         "invalid_value"),
        ("chat/completions", _with(IMAGE_PART), 400, "invalid_image"),
        ("chat/completions", _with({"type": "input_audio", "input_audio": {}}), 422, "invalid_value"),
        ("chat/completions", _with({"type": "image_url", "image_url": {"url": "https://x.example/a"}}), 400,
         "image_source_not_allowed"),
        ("chat/completions", _with({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), 400,
         "image_source_not_allowed"),
        ("chat/completions", _with({"type": "image", "codes": [5] * 31}), 400, None),
        ("chat/completions", _with({"type": "image", "codes": [99999] * 32}), 400, None),
        ("chat/completions", _with(*[IMAGE_PART] * 5), 400, "too_many_images"),
        ("chat/completions", _with(*[{"type": "image", "codes": CODES}] * 8), 400, "context_length_exceeded"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a dog " * 2000}]}, 400,
         "context_length_exceeded"),
        ("completions", {"prompt": [10**6]}, 400, None),
        ("completions", {"prompt": []}, 422, "invalid_value"),
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, 400, "unsupported_parameter"),
        ("responses", {"input": [{"type": "image_generation_call"}]}, 400, "invalid_image"),
        ("images/generations", {"prompt": "x", "size": "512x512"}, 400, "invalid_value"),
        ("images/generations", {"prompt": ""}, 422, "invalid_value"),
        ("embeddings", {"input": "text"}, 400, "no_text_encoder"),
        ("embeddings", {"input": [{"type": "image", "codes": [1]}]}, 400, None),
        ("nothing", {}, 404, "not_found"),
    ],
)  # fmt: skip
def test_bad_input_is_one_json_error(server, path, body, status, code):
    response = server.http.post(f"/v1/{path}", json=body)
    check_error(response, status, code)
    for secret in ("Traceback", "seed_jax/", "site-packages", "0x"):
        assert secret not in response.text


def check_error(response, status, code=None):
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code or error["code"]), response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert len(error["message"]) <= 1001
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"", 422), (b"\xff\xfe", 400), (b"[" * 100_000, 400), (b'{"messages": NaN}', 422), (b"nul", 400)],
)
def test_malformed_bodies(server, content, status):
    response = server.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    check_error(response, status)


def test_malformed_forms(server):
    def edit(**arguments):
        return server.http.post("/v1/images/edits", **arguments)

    image = {"image": ("a.png", encoded(make_image()))}
    check_error(edit(files={"image": ("a.png", b"no image")}, data={"prompt": "x"}), 400, "invalid_image")
    check_error(edit(files=image), 422, "invalid_value")
    check_error(edit(data={"prompt": "x", "image": "text"}), 422, "invalid_value")
    check_error(edit(files=image, data={"prompt": "x", "n": "many"}), 422, "invalid_value")
    check_error(edit(files=image, data={"prompt": "x", "nn": "1"}), 400, "unknown_parameter")
    check_error(edit(files={**image, "mask": ("m.png", b"x")}, data={"prompt": "x"}), 400, "unsupported_parameter")
    header = {"Content-Type": "multipart/form-data; boundary=b"}
    check_error(edit(content=b"--c\r\nrubbish", headers=header), 400)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    body = {"messages": [{"role": "user", "content": "x" * 600_000}]}
    check_error(server.http.post("/v1/chat/completions", json=body), 413, "request_too_large")

    def chunks():  # without a Content-Length
        for _ in range(700):
            yield b" " * 1024

    headers = {"Content-Type": "application/json"}
    check_error(server.http.post("/v1/chat/completions", content=chunks(), headers=headers), 413, "request_too_large")


def test_the_api_key_is_needed_everywhere_but_for_health(server, client):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert http.get("/health").json() == {"status": "ok"}
        for path in ("/v1/models", "/metrics", "/openapi.json", "/docs"):
            check_error(http.get(path), 401, "invalid_api_key")
        for path in ("/v1/chat/completions", "/tokenize", "/v1/images/edits"):
            check_error(http.post(path, json={}), 401, "invalid_api_key")
        for value in (f"Bearer {API_KEY[:-1]}", f"Bearer {API_KEY}x", "Bearer", f"Basic {API_KEY}", "Bearer \u00e9"):
            headers = {"Authorization": value.encode()}
            check_error(http.get("/v1/models", headers=headers), 401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_pages_of_other_origins_and_names_of_other_hosts_are_refused(server):
    check_error(server.http.get("/v1/models", headers={"Origin": "https://evil.example"}), 403, "origin_not_allowed")
    check_error(server.http.get("/v1/models", headers={"Host": "evil.example"}), 403, "host_not_allowed")
    assert server.http.get("/v1/models", headers={"Origin": server.url}).status_code == 200


def test_the_model_describes_itself(server, client):
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len, model.image_size) == ("tiny", 256, 64)
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    document = server.http.get("/openapi.json").json()
    paths = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/images/generations", "/v1/images/edits",
             "/v1/embeddings", "/tokenize", "/detokenize", "/v1/models", "/health", "/metrics"}  # fmt: skip
    assert paths <= set(document["paths"])
    chat_schema = document["components"]["schemas"]["ChatCompletionRequest"]
    for body in chat_schema["examples"]:
        assert server.http.post("/v1/chat/completions", json={**body, "max_tokens": 36}).status_code == 200


def test_an_allowed_file_is_read(server, model):
    make_image(3).save(server.allowed / "a.png")
    url = f"file://{server.allowed}/a.png"
    found = server.http.post("/tokenize", json={"images": [url]}).json()
    assert found["images"][0]["codes"] == list(model.encode(make_image(3))[0])


def test_metrics_count_what_happened(server, client):
    before = {name: server.metric(name) for name in COUNTERS}
    chat(client, [user("a dog", make_image(9))], max_tokens=40, modalities=["image"])
    found = {name: server.metric(name) - before[name] for name in COUNTERS}
    assert found["vllm:request_success_total"] == 1
    assert found["vllm:generation_tokens_total"] == 40
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert 0 < found["vllm:inter_token_latency_seconds_count"] < 40
    assert found["seed_jax:images_encoded_total"] == found["seed_jax:image_draw_seconds_count"] == 1
    assert server.metric("seed_jax:slots") == 4


COUNTERS = ("vllm:request_success_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_count",
            "vllm:inter_token_latency_seconds_count", "seed_jax:images_encoded_total",
            "seed_jax:image_draw_seconds_count")  # fmt: skip
# Six images of 250 steps each: seconds of work.
LONG = {"messages": MESSAGES, "max_tokens": 210, "num_images": 6, "draw_options": {"steps": 250}}


def is_idle(server):
    return server.metric("seed_jax:requests_open") == 0 and server.metric("seed_jax:slots_in_use") == 0


def test_a_full_queue_is_429_and_a_disconnection_frees_the_places(server):
    """Eight long answers fill the server; when their clients leave, the next request is answered at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stream = stack.enter_context(_stream(server, {**LONG, "n": 4, "stream": True}))
            assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert server.metric("seed_jax:requests_open") == 8
        response = server.http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1})
        check_error(response, 429, "queue_full")
        assert 1 <= int(response.headers["Retry-After"]) <= 120
        assert server.http.get("/health").status_code == 200
    server.wait_for(lambda: is_idle(server))
    assert server.http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1}).status_code == 200
    assert server.metric("vllm:admission_rejections_total") >= 1


@contextlib.contextmanager
def _stream(server, body):
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        yield response


def test_a_client_that_leaves_without_a_stream_frees_its_place(server):
    """Also for whole answers: in the queue, while tokens are generated, and while images are drawn."""
    content = json.dumps({**LONG, "n": 4}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head.encode() + content)
        server.wait_for(lambda: server.metric("seed_jax:requests_open") == 4)
    server.wait_for(lambda: is_idle(server))


def test_a_reader_that_is_slow_holds_up_nobody(server):
    with _stream(server, {**LONG, "n": 2, "stream": True}):  # reads nothing
        response = server.http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 8})
        assert response.status_code == 200
    server.wait_for(lambda: is_idle(server))


def test_answers_to_many_clients_are_not_mixed_up(server, model):
    """Requests of several threads, of text and of images: each gets the answer that belongs to its seed."""
    problems = []

    def ask(number):
        options = {"max_tokens": 40, "seed": number, "draw": False}
        options["modalities"] = ["text"] if number % 2 else ["image"]
        response = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": f"thing {number}"}], **options},
            headers={"Authorization": f"Bearer {API_KEY}"},
            timeout=120,
        )
        found[number] = response.json()

    found = {}
    for start in (0, 6):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(start, start + 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    vocabulary, requests = model.generator.vocabulary, []
    for number in range(12):
        params = SamplingParams(
            max_new_tokens=40, seed=number, mode="text" if number % 2 else "image", temperature=1.0, top_p=0.5
        )
        prompt = build_prompt([Message(USER, (TextSegment(f"thing {number}"),))], "vicuna", vocabulary)
        requests.append(Request(prompt, params))
    for number, wanted in enumerate(model.generator.generate(requests)):
        segments = found[number]["choices"][0]["message"]["segments"]
        if without_index(segments) != [segment.to_dict() for segment in wanted.segments]:
            problems.append(number)
    assert not problems


def test_nothing_failed_inside_and_nothing_leaked(server):
    """Last, when every kind of request has been answered."""
    server.wait_for(lambda: is_idle(server))
    assert server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0
    assert "Traceback" not in server.printed()
