"""Slow checks of a server: fuzzing by its own OpenAPI document, shutting down under load, files of images."""

import json
import signal
import threading
import time

import httpx
import pytest

from tests.serving.conftest import API_KEY
from tests.support.servers import ServerProcess

EXAMPLES = 15  # per endpoint
MESSAGES = [{"role": "user", "content": "a dog"}]


@pytest.mark.slow
def test_whatever_the_document_allows_is_answered_as_it_says(server):
    """No status that the document lacks, no traceback, an OpenAI error for every refusal; and the server goes on."""
    import schemathesis
    from hypothesis import HealthCheck, given, seed, settings

    document = server.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.generation.modes = list(schemathesis.GenerationMode)
    problems = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ("/metrics", "/health"):
            continue

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @seed(0)
        @given(case=operation.as_strategy())
        def check(case):
            response = case.call(base_url=server.url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=120)
            known = case.operation.definition.raw["responses"]
            text = response.text
            if str(response.status_code) not in known and response.status_code not in (404, 405):
                problems.append((case.operation.label, response.status_code, text[:300]))
            if response.status_code >= 500 or "Traceback" in text:
                problems.append((case.operation.label, response.status_code, text[:300], str(case.body)[:300]))
            if response.status_code >= 400 and response.status_code != 405:
                assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}

        check()
    assert not problems, problems[:5]
    server.wait_for(lambda: server.metric("seed_jax:requests_open") == 0)
    assert server.http.get("/health").status_code == 200


@pytest.fixture
def second_server(bundle, tmp_path):
    arguments = ["--model", bundle, "--slots", 2, "--draw-batch", 1, "--encode-batch", 1, "--shutdown-timeout", 60,
                 "--media-dir", tmp_path / "media"]  # fmt: skip
    server = ServerProcess(tmp_path / "log", *arguments)
    yield server
    if server.process.poll() is None:
        server.stop(signal.SIGKILL)


@pytest.mark.slow
def test_shutting_down_finishes_running_answers_and_refuses_new_ones(second_server, tmp_path):
    server = second_server
    url = server.http.post("/v1/chat/completions", json={"messages": MESSAGES, "modalities": ["image"]}).json()
    image, *_ = url["choices"][0]["message"]["images"]
    assert server.http.get(image["image_url"]["url"]).content.startswith(b"\x89PNG")

    body = {"messages": MESSAGES, "max_tokens": 200, "num_images": 4, "stream": True, "draw_options": {"steps": 200}}
    lines = []
    begun = threading.Event()

    def read():
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as response:
            for line in response.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while (health := server.http.get("/health")).status_code == 200:
        assert time.monotonic() < deadline
    assert health.status_code == 503
    refused = server.http.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    reader.join(120)
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert sum(len(chunk["choices"][0]["delta"].get("images", ())) for chunk in chunks) == 4
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.printed()
