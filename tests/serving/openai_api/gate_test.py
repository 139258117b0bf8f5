"""The middleware in front of the routes, and the files of drawn images: no model, no process."""

import asyncio
import os
import time

import httpx
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from seed_jax.serving.openai_api.image_output import ImageFormat, ImageWriter, MediaStore
from seed_jax.serving.openai_api.middleware import Gate, GateMiddleware, loopback_hosts


async def application(scope, receive, send):
    request = Request(scope, receive)
    if scope["path"] == "/fails":
        raise RuntimeError("secret")
    body = await request.body()
    await JSONResponse({"size": len(body), "id": scope["state"]["request_id"]})(scope, receive, send)


def ask(gate, method="GET", path="/v1/models", *, is_draining=False, app=application, **arguments):
    async def main():
        transport = httpx.ASGITransport(GateMiddleware(app, gate, lambda: is_draining))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(main())


def code(response):
    return response.status_code, response.json()["error"]["code"]


def test_every_response_has_the_clients_id_or_a_new_one():
    assert ask(Gate(), headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    fresh = {ask(Gate(), headers={"x-request-id": value}).headers["x-request-id"] for value in ("", "a b", "x" * 200)}
    assert len(fresh) == 3
    assert ask(Gate(), path="/fails").headers["x-request-id"]


def test_an_unexpected_error_is_told_without_details():
    response = ask(Gate(), path="/fails")
    assert code(response) == (500, "internal_error")
    assert "secret" not in response.text


def test_while_the_server_shuts_down_new_work_is_refused():
    response = ask(Gate(), "POST", is_draining=True)
    assert code(response) == (503, "shutting_down")
    assert response.headers["Retry-After"] == "1"
    assert ask(Gate(), "GET", is_draining=True).status_code == 200


def test_the_key_is_compared_as_a_whole():
    gate = Gate(api_key="k\u00e9y")
    header = {"Authorization": "Bearer k\u00e9y".encode()}
    assert ask(gate, headers={"Authorization": "Bearer k"}).status_code == 401
    assert ask(gate, headers={"Authorization": "Bearer "}).status_code == 401
    assert ask(gate).headers["www-authenticate"] == "Bearer"
    assert ask(gate, path="/health").status_code == ask(gate, path="/media/x").status_code == 200
    assert ask(gate, path="/healthy").status_code == ask(gate, path="/metrics").status_code == 401
    assert ask(Gate(api_key="key"), headers={"Authorization": "bearer key"}).status_code == 200
    assert ask(gate, headers=header).status_code in (200, 401)  # headers are Latin-1 or UTF-8 as clients like


def test_bodies_are_limited_in_size_and_in_time():
    gate = Gate(max_body_bytes=10, body_timeout_s=0.1)
    assert ask(gate, "POST", content=b"x" * 10).json()["size"] == 10
    assert code(ask(gate, "POST", content=b"x" * 11)) == (413, "request_too_large")

    async def chunks(count, delay=0.0):
        for _ in range(count):
            await asyncio.sleep(delay)
            yield b"xxxx"

    assert code(ask(gate, "POST", content=chunks(3))) == (413, "request_too_large")
    assert code(ask(gate, "POST", content=chunks(2, 0.5))) == (408, "request_timeout")


def test_hosts_and_origins():
    gate = Gate(allowed_hosts=loopback_hosts("127.0.0.1", []), allowed_origins=("https://app.example",))
    assert ask(gate).status_code == 200
    for host in ("127.0.0.1:8000", "LOCALHOST:1", "[::1]:8000"):
        assert ask(gate, headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::2]"):
        assert ask(gate, headers={"Host": host}).status_code == 403
    assert ask(gate, headers={"Origin": "https://app.example"}).status_code == 200
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://evil.example:80/localhost"):
        assert code(ask(gate, headers={"Origin": origin})) == (403, "origin_not_allowed")
    assert loopback_hosts("0.0.0.0", []) is None
    assert "seed.example" in loopback_hosts("0.0.0.0", ["Seed.example"])


def test_a_stream_passes_through_piece_by_piece():
    async def app(scope, receive, send):
        async def pieces():
            for number in range(3):
                yield f"{number}\n"

        await StreamingResponse(pieces())(scope, receive, send)

    assert ask(Gate(), app=app).text == "0\n1\n2\n"


def test_files_have_unguessable_names_and_expire(tmp_path):
    store = MediaStore(tmp_path / "media", expiry_s=100.0, max_bytes=10)
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "media/own.txt").write_text("mine")
    names = [store.add(b"1234", "png") for _ in range(2)]
    assert len(set(names)) == 2
    assert all(len(name) == 36 for name in names)
    assert store.find(names[0]).read_bytes() == b"1234"
    for name in ("../secret.png", "own.txt", "", names[0].replace(".png", ".jpeg"), "a" * 32 + ".png"):
        assert store.find(name) is None
    old = time.time() - 50
    os.utime(tmp_path / "media" / names[0], (old, old))
    newest = store.add(b"1234", "png")  # a third file is more than ten bytes: the oldest goes
    assert store.find(names[0]) is None
    assert store.find(names[1]) is not None
    os.utime(tmp_path / "media" / newest, (old - 60, old - 60))
    assert store.find(newest) is None
    store.prune()
    assert sorted(path.name for path in (tmp_path / "media").iterdir()) == sorted(["own.txt", names[1]])


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
def test_an_image_is_a_data_uri_or_a_file(tmp_path, name):
    image = Image.new("RGB", (4, 2), "red")
    store = MediaStore(tmp_path)
    inline = asyncio.run(ImageWriter().write(image, ImageFormat(name), as_file=True))
    assert inline.url.startswith(f"data:image/{name};base64,")
    assert inline.size == "4x2"
    written = asyncio.run(ImageWriter(store, "https://s.example/").write(image, ImageFormat(name), as_file=True))
    assert written.url.startswith("https://s.example/media/")
    assert store.find(written.url.rpartition("/")[2]).read_bytes() == written.data
