"""`seed-jax chat` on a terminal that types by itself, as a whole command and on a real pseudo-terminal."""

import io
import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_jax.cli import main
from seed_jax.cli.chat.background import AbandonedError, Background, StatusLine
from seed_jax.cli.chat.line_reader import split_paths
from seed_jax.cli.chat.terminal import Terminal
from seed_jax.inference.chat.conversation import Conversation
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.seed_llama import LoadConfig, SeedLlama
from seed_jax.terminal import escaped_stdout
from tests.cli.generate_test import models  # noqa: F401
from tests.inference.generation.cases import small


class PixelTokenizer(ImageTokenizer):
    """Encodes an image as its upper left pixel, and hands codes to the drawer as they are."""

    def __init__(self):
        pass

    def encode(self, images):
        return np.stack([np.full(32, np.asarray(image)[0, 0, 0] % 64) for image in images]).astype(np.int32)

    def embed_codes(self, codes):
        return codes


class SeedDrawer(Drawer):
    """Draws the seed."""

    def __init__(self):
        pass

    def draw(self, embeddings, seeds, options, **_):
        return np.stack([np.full((8, 8, 3), seed % 256, np.uint8) for seed in seeds])


@pytest.fixture
def chat(monkeypatch, capsys, tmp_path):
    """Return a function that types lines into a chat of the small model and returns what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*typed: str, seed: int = 0, resume: Path | None = None, folder: str = "chats") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        model = SeedLlama(small(), lambda _: PixelTokenizer(), SeedDrawer, "vicuna")
        params = SamplingParams(40, temperature=1.0, seed=seed)
        config = LoadConfig(Path("model"), decoder=Path("decoder"))
        terminal = Terminal(model, Conversation(model.generator, "vicuna", params), config, Path(folder))
        if resume is not None:
            terminal.load(resume)
        assert terminal.run() == 0
        return capsys.readouterr().out

    return run


def messages(path: Path | str) -> list[dict]:
    return json.loads(Path(path).read_text())["messages"]


def text_of(message: dict) -> str:
    return "".join(segment.get("text", "<image>") for segment in message["segments"])


def save_image(path: Path | str, grey: int) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
    return path


def test_every_turn_has_its_own_printed_seed_which_reaches_the_drawing(chat):
    output = chat("/draw cat", "/draw cat", "/seed 200", "/draw cat", seed=7)
    assert re.findall(r"seed (\d+)\]", output) == ["7", "8", "200", "200"]
    first = [message for message in messages("chats/chat_1.json") if message["role"] == "assistant"]
    assert [message["seed"] for message in first] == [7, 8, 200]
    names = [segment["file"] for message in first for segment in message["segments"][:1]]
    greys = [np.asarray(Image.open(f"chats/{name}"))[0, 0, 0] for name in names]
    assert greys == [7, 8, 200]
    assert all(f"[image] chats/{name}" in output for name in names)


def test_a_turn_is_repeated_by_its_seed_and_retried_with_the_next(chat):
    chat("cat", "dog", "/undo", "/seed 1", "dog", "/retry", "/retry")
    chat("cat", "dog", "/seed 3")
    (_, _, _, retried), (_, _, _, repeated) = messages("chats/chat_1.json"), messages("chats/chat_2.json")
    assert retried["seed"] == 3
    assert repeated["seed"] == 1
    chat("cat", "/seed 3", "dog")
    assert messages("chats/chat_3.json")[3] == retried


def test_sessions_never_replace_files_of_earlier_ones(chat):
    chat("/draw a", "/save copy.json")
    before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    assert len(before) >= 4  # the conversation and its copy, each with its image
    output = chat("/draw b", "/save copy.json", "/save other.json", "/save other.json", seed=5)
    assert "! copy.json exists and is not the file of this conversation" in output
    assert output.count("[saved other.json]") == 2
    assert {path: path.read_bytes() for path in before} == before
    assert messages("chats/chat_2.json") != messages("chats/chat_1.json")


def test_a_conversation_is_resumed_in_its_file_and_loaded_into_a_new_one(chat):
    save_image("cat.png", 9)
    chat("/image cat.png", "what is <image>", "/draw it", seed=4)
    saved = messages("chats/chat_1.json")
    saved_images = {path.name: path.read_bytes() for path in Path("chats").glob("*.png")}
    output = chat("and?", resume=Path("chats/chat_1.json"))
    assert "[2 question(s) and answer(s) loaded from chats/chat_1.json]" in output
    assert "you> it" in output
    resumed = messages("chats/chat_1.json")
    assert resumed[:4] == saved
    assert resumed[5]["seed"] == 6  # one more than the last answer's
    assert {path.name: path.read_bytes() for path in Path("chats").glob("*.png")} == saved_images
    output = chat("/load chats/chat_1.json", "/save ~/none/x", "new", "/reset", "again", folder="elsewhere")
    assert messages("elsewhere/chat_1.json")[:6] == resumed  # its images are numbered alike
    assert [text_of(m) for m in messages("elsewhere/chat_2.json") if m["role"] == "user"] == ["again"]
    assert messages("chats/chat_1.json") == resumed


def test_whatever_save_and_load_are_given_the_chat_goes_on(chat, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    Path("folder").mkdir()
    Path("list.json").write_text("[]")
    bad = ["/save .", "/save folder", "/save folder/", "/save /proc/x.json", "/save none/x.json"]
    bad += ["/save ''", "/load", "/load none.json", "/load folder", "/load list.json", "/save " + "x" * 300]
    output = chat("hello", *bad, "/save ~/x.json", "/save")
    assert output.count("you> ! ") == len(bad)
    assert "[saved chats/chat_1.json]" in output
    assert messages(tmp_path / "home/x.json") == messages("chats/chat_1.json")
    assert not list(Path("folder").iterdir())
    assert not list(Path().rglob(".*"))


def test_a_directory_that_cannot_be_written_loses_nothing_but_the_file(chat):
    Path("chats").write_text("a file")
    output = chat("/draw a", "b", "/save kept.json")
    assert output.count("! The conversation is not saved") == 2
    assert "! Cannot write the image to chats" in output
    assert len(messages("kept.json")) == 4


def test_paths_are_written_as_in_a_shell(chat, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number, name in enumerate(["home/p.png", "my cat.png", "it's.png", "a.png", "b.png"]):
        save_image(name, number)
    typed = ['"my cat.png"', "my cat.png", r"my\ cat.png", "~/p.png", "'~/p.png'", "it's.png", "a.png b.png"]
    output = chat(*(f"/image {path}" for path in typed), "/remove 1", "/remove", "/remove 9", "/image", "what?")
    assert "[8 image(s) attached to your next message" in output
    assert "! 9 is out of range, expected 1 to 6" in output
    assert "Usage: /image PATH" in output
    assert "(1: my cat.png, 2: my cat.png, 3: p.png, 4: p.png, 5: it's.png, 6: a.png)" in output
    assert list(split_paths("gone.png")) == [Path("gone.png")]
    assert list(split_paths("my gone cat.png")) == [Path("my gone cat.png")]


def test_placeholders_lines_and_image_counts(chat):
    save_image("a.png", 3)
    output = chat(
        "/image a.png", r"the tag \<image> of <image>, see?", "first\\", "second", "/draw", "/images", "/images 0",
        "/image a.png", "/remove", "/fly", "/image gone.png", "<image>", "/help", "", "/remove", "/quit", "never read",
    )  # fmt: skip
    user = [message for message in messages("chats/chat_1.json") if message["role"] == "user"]
    assert [text_of(message) for message in user] == ["the tag <image> of <image>, see?", "first\nsecond"]
    assert [segment["type"] for segment in user[0]["segments"]] == ["text", "image", "text"]
    assert "Usage: /draw TEXT" in output
    assert "! Usage: /images N" in output
    assert "[every answer has exactly 0 image(s)]" in output
    assert "! Unknown command /fly" in output
    assert "! Cannot read gone.png" in output
    assert "! The prompt has 1 <image> placeholder(s) but 0 image(s)" in output
    assert "! No image is attached" in output
    assert output.endswith("[conversation saved; continue it with --resume chats/chat_1.json]\n")


def test_an_exact_number_of_images(chat):
    output = chat("/images 1", "/draw a", "/images auto", "/images 2", "b")
    answer = messages("chats/chat_1.json")[1]
    assert [segment["type"] for segment in answer["segments"]].count("image") == 1
    assert "need 68" in output  # tokens of two images, of 40


def test_an_error_of_the_model_or_the_decoder_keeps_the_conversation(chat, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED:\nout of memory")

    monkeypatch.setattr(SeedDrawer, "draw", fail)
    output = chat("hello", "/draw a", "/save copy.json")
    assert "! RuntimeError: RESOURCE_EXHAUSTED: out of memory" in output
    assert [text_of(message) for message in messages("copy.json")][::2] == ["hello", "a"]
    monkeypatch.setattr(PixelTokenizer, "encode", fail)
    save_image("a.png", 3)
    output = chat("hello", "/image a.png", "and?")
    assert "! RuntimeError" in output
    assert [text_of(message) for message in messages("chats/chat_2.json")][::2] == ["hello", "and?"]


def test_the_first_ctrl_c_stops_and_the_second_does_not_wait(capsys):
    background, released, seen = Background(StatusLine()), threading.Event(), []

    def compiling(interrupt):
        yield "first"
        while not interrupt.requested:
            time.sleep(0.01)
        seen.append("asked to stop")
        released.wait(30)  # as XLA, which does not look at anything
        yield "never seen"

    def press():
        os.kill(os.getpid(), signal.SIGINT)
        while "asked to stop" not in seen:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    results = background.iterate("generating", compiling)
    assert next(results) == "first"
    threading.Thread(target=press).start()
    with pytest.raises(AbandonedError):
        next(results)
    assert "[stopping; Ctrl-C again does not wait for it]" in capsys.readouterr().out
    threading.Timer(0.3, released.set).start()
    assert background.call("next", lambda: 3) == 3  # begins when the abandoned call has ended
    background.close()


def test_what_is_waited_for_shows_on_a_terminal_only(monkeypatch, capsys):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    def work():
        logging.info("compiling something ...")
        time.sleep(0.8)

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", screen := Screen())
    logging.getLogger().setLevel(logging.INFO)
    with escaped_stdout():  # as in `main`
        background = Background(StatusLine())
        background.call("generating", work)
        background.close()
    assert re.search(r"\x1b\[2m\[compiling something, \d s\]\x1b\[0m", screen.getvalue())
    assert screen.getvalue().endswith("\x1b[K")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not StatusLine()._enabled


def test_the_command_in_whole(models, tmp_path, monkeypatch, capsys, caplog):  # noqa: F811
    """Images in, images out, as `seed-jax chat` loads the models; `generate`'s tests draw in earnest."""
    caplog.set_level(logging.INFO)
    drawn = Image.new("RGB", (8, 8))
    monkeypatch.setattr(
        SeedLlama, "draw", lambda _, segments, seed: [drawn for part in segments if isinstance(part, ImageSegment)]
    )
    typed = f"/image {models / '0.png'}\nwhat?\n/draw a dog\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    words = ["chat", "--model", models / "named", "--max-new-tokens", 40, "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    output = capsys.readouterr().out
    turns = messages(tmp_path / "out/chat_1.json")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert [segment["type"] for segment in turns[0]["segments"]] == ["image", "text"]
    assert turns[3]["segments"][0]["type"] == "image"
    assert (tmp_path / "out" / turns[3]["segments"][0]["file"]).exists()
    # Without a decoder, images are codes; the newest conversation is continued.
    monkeypatch.setattr("sys.stdin", io.StringIO("/draw a dog\n/draw a cat\n"))
    words[2] = models / "llama"
    assert main([*map(str, words), "--resume"]) == 0
    output = capsys.readouterr().out
    assert output.count("[image] ") >= 2
    assert caplog.text.count("--decoder DIR") == 1
    assert "Prompt style base" in caplog.text
    assert "saved with prompt style vicuna" in output
    assert len(messages(tmp_path / "out/chat_1.json")) == 8
    assert main([*map(str, words[:-1]), str(tmp_path / "none"), "--resume"]) == 2
    assert "has no saved conversation" in capsys.readouterr().err


def test_ctrl_c_at_a_prompt_of_a_terminal_drops_the_line_only(models, tmp_path):  # noqa: F811
    controller, terminal = pty.openpty()
    words = ["--model", models / "blind", "--max-new-tokens", "3", "--text-only", "--out", tmp_path / "out"]
    environment = {
        **os.environ,
        "TERM": "xterm",
        "XDG_STATE_HOME": str(tmp_path),
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "seed_jax.cli", "chat", *map(str, words)],
        stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    screen = ""

    def type_after(expected: str, keys: bytes) -> None:
        nonlocal screen
        deadline = time.monotonic() + 120
        while expected not in screen:
            assert time.monotonic() < deadline, screen
            if select.select([controller], [], [], 1)[0]:
                screen += os.read(controller, 65536).decode(errors="replace")
        screen = screen.partition(expected)[2]
        os.write(controller, keys)

    try:
        type_after("you>", b"hello\x1b\rthere\r")
        type_after("[reached the maximum length; seed 0]", b"")
        type_after("you>", b"half a line\x03")
        type_after("line dropped", b"")
        type_after("you>", b"\x1b[A")  # the arrow brings the first message back
        type_after("hello", b"\x03")
        type_after("line dropped", b"")
        type_after("you>", b"\x04")
        type_after("continue it with --resume", b"")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert text_of(messages(tmp_path / "out/chat_1.json")[0]) == "hello\nthere"
    assert "hello" in (tmp_path / "seed_jax/chat_history").read_text()
