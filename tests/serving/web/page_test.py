"""The chat page in headless Chromium, on a service that plays scripted answers; nothing leaves the server."""

import json
import re
import shutil
import socket
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from seed_jax.inference.generation.segments import ImageSegment
from seed_jax.serving.messages import ImageCodes, ImageDrawn, ImageProgress, ImageStarted, TextDelta
from tests.serving.web.player import CODES, FINISHED, RED, Player

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
DRAWING = [
    TextDelta("Here <image> it *is*:\n  "), 0.3, ImageStarted(0), 0.3, ImageCodes(0, CODES), ImageProgress(0, 5, 20),
    1.0, TextDelta("a dog"), ImageDrawn(0, RED), FINISHED,
]  # fmt: skip
TIMEOUT_MS = 60_000
# What is wider than the window, but for the closed sidebar beside it.
WIDE_ELEMENTS = """[...document.querySelectorAll("body *")].filter((element) =>
  element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".sidebar")
).map((element) => `${element.tagName}#${element.id}.${element.className} ${element.getBoundingClientRect().right}`)"""

# The chosen option, and whether it looks other than the rest.
CHOSEN_AND_OTHER_COLOR = """(() => {
  const inputs = [...document.querySelectorAll("#images-row input")];
  const chosen = inputs.find((input) => input.checked), other = inputs.find((input) => !input.checked);
  const color = (input) => getComputedStyle(input).backgroundColor;
  return [chosen.closest("label").innerText.trim(), color(chosen) !== color(other)];
})()"""


@pytest.fixture(scope="module")
def service():
    return Player()


@pytest.fixture(scope="module")
def address(service):
    """Serve the page and return its address."""
    import uvicorn
    from fastapi import FastAPI

    from seed_jax.serving.web.mount import mount_page
    from seed_jax.serving.web.page import PageConfig

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = mount_page(FastAPI(), service, PageConfig("tiny"))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{port}/ui/"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=[(1280, 900, "light"), (430, 900, "dark")], ids=["desk", "phone"])
def page(request, browser, address):
    """Open the page; at the end, no request may have gone elsewhere, and the browser must not have complained."""
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, elsewhere, complaints = context.new_page(), [], []

    def route(request):
        if request.request.url.startswith((address.removesuffix("ui/"), "data:", "blob:")):
            request.continue_()
        else:
            elsewhere.append(request.request.url)
            request.abort()

    context.route("**/*", route)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(TIMEOUT_MS)
    page.goto(address)
    page.wait_for_selector("#message textarea")
    yield page
    # Before the context is closed, which would end requests.
    assert elsewhere == []
    assert complaints == []
    context.close()


def send(page, text: str) -> None:
    page.wait_for_selector("#message button[aria-label=Submit]")
    page.locator("#message textarea").fill(text)
    page.locator("#message textarea").press("Enter")


def wait_for_answers(page, count: int) -> None:
    playwright.expect(page.locator("#conversation .footer")).to_have_count(count, timeout=TIMEOUT_MS)


def test_a_conversation_with_images_stop_regenerate_edit_undo_and_download(page, service, tmp_path):
    service.script, service.prompts, service.params = DRAWING, [], []
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "cat.png")

    # An attached image and a drawn one.
    page.locator("#message input[type=file]").set_input_files(tmp_path / "cat.png")
    page.wait_for_selector("#message img")
    page.get_by_label("Image first").check()
    send(page, "Is <image> **big**\n  & <b>bold</b>?")
    page.wait_for_selector("#conversation .pending progress[value='5'][max='20']")
    wait_for_answers(page, 1)
    assert service.params[0].mode == "image"
    page.get_by_label("Image first").hover()
    page.wait_for_timeout(300)  # for the transition of the color
    assert page.evaluate(CHOSEN_AND_OTHER_COLOR) == ["Image first", True]
    assert service.prompts == [[("user", ("Is ", ImageSegment((9,) * 32), " **big**\n  & <b>bold</b>?"))]]
    question = page.locator("#conversation .question").inner_text()
    assert re.sub(r"\s+", " ", question).startswith("Is **big** & <b>bold</b>?")
    shown_images = page.locator("#conversation img")
    assert [shown_image.get_attribute("alt") for shown_image in shown_images.all()] == [
        "Image 1 of question 1", "Drawn image 1: Is **big** & <b>bold</b>?",
    ]  # fmt: skip
    for shown_image in shown_images.all():
        playwright.expect(shown_image).to_have_js_property("complete", True)
        assert shown_image.evaluate("image => image.naturalWidth") > 0
    assert "Here <image> it *is*:\n  " in page.locator("#conversation .message-content").first.text_content()
    assert page.locator("#message textarea").input_value() == ""
    assert page.evaluate(WIDE_ELEMENTS) == []

    # Stop: what was generated stays, the service is told, the page goes on.
    service.script, closed = [TextDelta("half of"), 100, FINISHED], service.closed
    send(page, "Talk.")
    page.get_by_text("half of").wait_for()
    page.locator("#message button[aria-label=Stop]").click()
    wait_for_answers(page, 2)
    assert "stopped" in page.locator("#conversation .footer").last.inner_text()
    deadline = time.monotonic() + 20
    while service.closed == closed or service.num_requests:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    # Regenerate: the same question, another seed, the new answer in place of the old one.
    service.script = [TextDelta("a whole answer"), FINISHED]
    page.locator("#conversation button[aria-label=Retry]").click()
    page.get_by_text("a whole answer").wait_for()
    wait_for_answers(page, 2)
    assert page.get_by_text("half of").count() == 0
    assert service.prompts[2] == service.prompts[1]
    assert service.params[2].seed != service.params[1].seed

    # Edit the first question: its image stays, what follows is replaced.
    page.get_by_label("Edit question 1").click()
    page.wait_for_selector("#edit-notice", state="visible")
    playwright.expect(page.locator("#message textarea")).to_have_value("Is <image> **big**\n  & <b>bold</b>?")
    playwright.expect(page.locator("#message img")).to_have_count(1)
    send(page, "Is <image> small?")
    wait_for_answers(page, 1)
    assert service.prompts[3] == [("user", ("Is ", ImageSegment((9,) * 32), " small?"))]

    # A seed from the settings repeats an answer.
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("123")
    page.get_by_role("button", name="Close").click()
    playwright.expect(page.locator(".sidebar.open")).to_have_count(0, timeout=TIMEOUT_MS)
    send(page, "And?")
    wait_for_answers(page, 2)
    assert "seed 123" in page.locator("#conversation .footer").last.inner_text()
    assert service.params[4].seed == 123

    # Download, begin anew, open what was downloaded.
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").first.click()
    download.value.save_as(tmp_path / "talk.zip")
    with zipfile.ZipFile(tmp_path / "talk.zip") as archive:
        stored = json.loads(archive.read("conversation.json"))
        shown_image = Image.open(archive.open("image_1.png"))
        assert np.asarray(shown_image).shape == (30, 40, 3)
    assert [message["role"] for message in stored["messages"]] == ["user", "assistant"] * 2
    assert stored["messages"][3]["seed"] == 123
    page.get_by_role("button", name="New chat").click()
    wait_for_answers(page, 0)
    page.locator("#header input[type=file]").set_input_files(tmp_path / "talk.zip")
    wait_for_answers(page, 2)
    assert page.locator("#conversation img").count() == 1

    # Undo by keyboard.
    page.locator("#conversation button[aria-label=Undo]").focus()
    page.keyboard.press("Enter")
    wait_for_answers(page, 1)


def test_what_is_refused_is_said_and_comes_back_into_the_box(page, service, tmp_path):
    service.script = [FINISHED]
    (tmp_path / "bad.png").write_bytes(b"no image")
    page.locator("#message input[type=file]").set_input_files(tmp_path / "bad.png")
    page.wait_for_selector("#message button[aria-label='Remove file']")
    send(page, "what?")
    page.get_by_text("Cannot read bad.png").wait_for()
    assert page.locator("#message textarea").input_value() == "what?"
    assert page.locator("#conversation .footer").count() == 0


def test_the_api_key_is_the_password_of_the_page():
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from seed_jax.serving.web.mount import mount_page
    from seed_jax.serving.web.page import PageConfig

    client = TestClient(mount_page(FastAPI(), Player(), PageConfig("tiny"), api_key="secret"))
    assert client.get("/ui/gradio_api/info").status_code == 401
    assert client.post("/ui/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert client.post("/ui/login", data={"username": "me", "password": "secret"}).status_code == 200
    answer = client.get("/ui/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
