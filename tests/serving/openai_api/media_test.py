"""The rules of images in requests: what is read, what is refused, and that nothing slips past the checks."""

import base64
import http.server
import io
import os
import threading

import pytest
from PIL import Image

from seed_jax.errors import UserError
from seed_jax.serving.openai_api.errors import ApiError
from seed_jax.serving.openai_api.media import MediaLoader, MediaRules, is_public

HOST = "images.example"
PUBLIC = "93.184.216.34"


def encoded(size=(8, 6), image_format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, image_format)
    return buffer.getvalue()


def data_uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def loader(*sources, addresses=(PUBLIC,), **limits):
    return MediaLoader(MediaRules.from_sources(sources, **limits), lambda host, port: list(addresses))


def refusal(call, *arguments):
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_a_data_uri_is_decoded(image_format):
    image = loader().image(data_uri(encoded(image_format=image_format), image_format.lower()), "x")
    assert image.size == (8, 6)
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,@@@@", "invalid_image_url"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:text/html;base64,AAAA", "invalid_image_url"),
        ("javascript:alert(1)", "invalid_image_url"),
        ("ftp://images.example/a.png", "invalid_image_url"),
        ("", "invalid_image_url"),
        (data_uri(b"no image"), "invalid_image"),
        (data_uri(encoded()[:40]), "invalid_image"),
        (data_uri(encoded(image_format="GIF")), "invalid_image"),
        (data_uri(encoded(image_format="TIFF")), "invalid_image"),
    ],
)
def test_what_is_no_image_is_refused_without_the_decoders_words(url, code):
    with pytest.raises(ApiError) as caught:
        loader().image(url, "messages.0")
    assert (caught.value.status, caught.value.code) == (400, code)
    assert "0x" not in caught.value.message
    assert "BytesIO" not in caught.value.message


def test_size_is_limited_in_bytes_and_in_pixels_before_decoding():
    assert refusal(loader(max_bytes=100).image, data_uri(b"x" * 101), "x") == (413, "image_too_large")
    assert refusal(loader(max_pixels=47).image, data_uri(encoded()), "x") == (413, "image_too_large")
    assert loader(max_pixels=48).image(data_uri(encoded()), "x").size == (8, 6)
    header = bytearray(encoded())
    header[16:24] = (200_000).to_bytes(4, "big") * 2  # a PNG that says that it is 200,000 pixels wide and high
    assert refusal(loader().image, data_uri(bytes(header)), "x")[0] in (400, 413)


def test_urls_and_files_are_refused_unless_they_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    for url in (f"https://{HOST}/a.png", f"http://{HOST}/a.png", f"file://{tmp_path}/a.png"):
        assert refusal(loader().image, url, "x") == (400, "image_source_not_allowed")
    assert loader(str(tmp_path)).image(f"file://{tmp_path}/a.png", "x").size == (8, 6)
    assert refusal(loader("other.example").image, f"https://{HOST}/a.png", "x") == (400, "image_source_not_allowed")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a00:1::",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fe80::1%eth0", "no address",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)
    assert refusal(loader(HOST, addresses=[PUBLIC, address]).image, f"http://{HOST}/a", "x") == (
        400, "image_source_not_allowed",
    )  # fmt: skip


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/a.png",  # 127.0.0.1 as a decimal number
        "http://0x7f000001/a.png",
        "http://0177.0.0.1/a.png",
        "http://127.1/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        f"http://{HOST}\\@127.0.0.1/a.png",
        f"http://127.0.0.1\\{HOST}/a.png",
        f"http://{HOST}@127.0.0.1/a.png",
        f"http://127.0.0.1#@{HOST}/a.png",
        f"http://{HOST}:80@127.0.0.1/a.png",
        f"http://user:password@{HOST}/a.png",
        f"http://{HOST}.evil.example/a.png",
        f"http://evil.example/{HOST}",
        f"http://{HOST}:22/a.png",
        f"http://{HOST}:99999/a.png",
        f"http:///{HOST}/a.png",
        f"http:{HOST}/a.png",
        f"http://{HOST}\t/a.png",
        f"http://{HOST}/a.png\r\nX-Header: 1",
        f"http://{HOST}\u3002evil/a.png",
        "http://im\u00e4ges.example/a.png",
        f"http://{HOST}/" + "a" * 3000,
    ],
)
def test_urls_that_parsers_understand_differently_or_that_name_another_host(url):
    assert refusal(loader(HOST).parse, url, "x")[0] == 400


def test_what_was_parsed_is_what_is_fetched():
    remote = loader(HOST, f"{HOST}:8080").parse(f"HTTPS://{HOST.upper()}/a%20b.png?x=1#fragment", "x")
    assert (remote.scheme, remote.host, remote.port, remote.target) == ("https", HOST, 443, "/a%20b.png?x=1")
    assert loader(HOST, f"{HOST}:8080").parse(f"http://{HOST}:8080", "x").port == 8080


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves an image, redirects, and bodies that never end."""

    def do_GET(self):
        self.server.seen.append((self.headers["Host"], self.path))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        if self.path == "/endless":
            for _ in range(1000):
                self.wfile.write(b"x" * 1000)
        elif self.path == "/slow":
            self.server.released.wait(20)
        else:
            self.wfile.write(encoded())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def remote():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.released = [], threading.Event()
    server.name = f"{HOST}:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def local(remote, *others, **limits):
    """Return a loader that may reach the server of this test under the name `images.example`."""
    return loader(remote.name, *others, addresses=["127.0.0.1"], allow_private_addresses=True, **limits)


def test_an_image_is_fetched_from_the_checked_address_under_its_name(remote):
    assert local(remote).image(f"http://{remote.name}/a.png?b=c", "x").size == (8, 6)
    assert remote.seen[-1] == (remote.name, "/a.png?b=c")


def test_a_name_that_resolves_differently_the_second_time_gains_nothing(remote):
    """DNS rebinding: the name is resolved once, and the connection goes to the address that was checked."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    asked = []

    def resolver(host, port):
        asked.append(host)
        return next(answers)

    rules = MediaRules.from_sources([remote.name], allow_private_addresses=True)
    assert MediaLoader(rules, resolver).image(f"http://{remote.name}/a.png", "x").size == (8, 6)
    assert asked == [HOST]


def test_every_redirect_passes_the_same_rules(remote):
    assert local(remote).image(f"http://{remote.name}/to//a.png", "x").size == (8, 6)
    assert local(remote).image(f"http://{remote.name}/to/http://{remote.name}/a.png", "x").size == (8, 6)
    for target in ("http://169.254.169.254/latest", "http://localhost/", "file:///etc/passwd", "//evil.example/", "\\"):
        assert refusal(local(remote).image, f"http://{remote.name}/to/{target}", "x")[0] == 400
    assert refusal(local(remote).image, f"http://{remote.name}/to/" + "/to/" * 5 + "/a.png", "x")[0] == 400


def test_bytes_and_time_of_a_fetch_are_limited(remote):
    assert refusal(local(remote, max_bytes=5000).image, f"http://{remote.name}/endless", "x") == (
        413,
        "image_too_large",
    )
    assert refusal(local(remote, timeout_s=0.3).image, f"http://{remote.name}/slow", "x") == (400, "image_fetch_failed")
    assert refusal(local(remote).image, f"http://{remote.name}/missing", "x") == (400, "image_fetch_failed")
    assert refusal(loader(HOST, addresses=[]).image, f"http://{HOST}/a", "x") == (400, "image_fetch_failed")


def test_files_outside_the_directory_are_refused_links_included(tmp_path):
    allowed, outside = tmp_path / "allowed", tmp_path / "allowed_not"
    allowed.mkdir()
    outside.mkdir()
    (outside / "secret.png").write_bytes(encoded())
    (allowed / "a b.png").write_bytes(encoded())
    (allowed / "link.png").symlink_to(outside / "secret.png")
    (allowed / "folder").symlink_to(outside)
    (allowed / "loop").symlink_to(allowed / "loop")
    (allowed / "inner.png").symlink_to(allowed / "a b.png")
    os.mkfifo(allowed / "fifo.png")
    read = loader(str(allowed)).image
    assert read(f"file://{allowed}/a%20b.png", "x").size == (8, 6)
    assert read(f"file://{allowed}/inner.png", "x").size == (8, 6)
    for path in (
        "link.png", "folder/secret.png", "../allowed_not/secret.png", "%2e%2e/allowed_not/secret.png", "loop",
        "missing.png", "fifo.png", "", "a%00.png",
    ):  # fmt: skip
        assert refusal(read, f"file://{allowed}/{path}", "x") == (400, "image_source_not_allowed")
    assert refusal(read, f"file://evil.example{allowed}/a%20b.png", "x") == (400, "image_source_not_allowed")
    assert refusal(loader(str(allowed), max_bytes=10).image, f"file://{allowed}/a%20b.png", "x")[0] == 413


@pytest.mark.parametrize("source", ["./missing", "two words", "host:port", "-x", ""])
def test_sources_that_are_neither_a_host_nor_a_directory(source):
    with pytest.raises(UserError, match="allow-images-from"):
        MediaRules.from_sources([source])
