"""Conversations as files: what is written is read again, and nothing else is."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import ASSISTANT, USER
from seed_jax.inference.chat.transcript import RecordedMessage, Transcript, TranscriptFile, as_attachment
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from tests.inference.generation.cases import vocabulary

CODES = tuple(range(32))


def image(grey: int) -> Image.Image:
    return Image.new("RGB", (8, 6), (grey, grey, grey))


def example() -> Transcript:
    question = RecordedMessage(USER, (ImageSegment(CODES), TextSegment("and\u2028é?")), (image(3),))
    parts = (TextSegment("a"), ImageSegment(CODES[::-1]), ImageSegment(CODES))
    return Transcript((question, RecordedMessage(ASSISTANT, parts, (image(5), None), 7, "eos")), "vicuna")


def assert_equal(read: Transcript, expected: Transcript) -> None:
    assert read.style == expected.style
    for one, other in zip(read.messages, expected.messages, strict=True):
        assert (one.role, one.segments, one.seed, one.finish_reason) == (
            other.role, other.segments, other.seed, other.finish_reason,
        )  # fmt: skip
        for left, right in zip(one.images, other.images, strict=True):
            assert (left is None) == (right is None)
            if left is not None and right is not None:
                np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_a_file_and_an_archive_hold_the_whole_conversation(tmp_path):
    TranscriptFile(tmp_path / "talk.json").write(example())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.json", "talk_1.png", "talk_2.png"]
    assert_equal(Transcript.load(tmp_path / "talk.json", vocabulary()), example())
    (tmp_path / "talk.zip").write_bytes(example().to_zip())
    assert_equal(Transcript.load(tmp_path / "talk.zip", vocabulary()), example())
    # Without its images, a conversation still has their codes.
    (tmp_path / "talk_1.png").unlink()
    (tmp_path / "talk_2.png").write_bytes(b"damaged")
    read = Transcript.load(tmp_path / "talk.json", vocabulary())
    assert [message.segments for message in read.messages] == [message.segments for message in example().messages]
    assert [message.images for message in read.messages] == [(None,), (None, None)]


def test_a_file_follows_its_conversation_and_replaces_no_other(tmp_path):
    (tmp_path / "talk_1.png").write_text("of somebody else")
    file, transcript = TranscriptFile(tmp_path / "talk.json"), example()
    file.write(transcript)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    file.write(Transcript(transcript.messages * 2, "vicuna"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == before  # written once
    assert (tmp_path / "talk_1.png").read_text() == "of somebody else"
    with pytest.raises(UserError, match="exists and is not the file of this conversation"):
        TranscriptFile(tmp_path / "talk.json").write(example())
    os.utime(tmp_path / "talk.json", ns=(1, 1))  # another process wrote it
    assert not file.is_own
    with pytest.raises(UserError, match="exists and is not the file of this conversation"):
        file.write(example())
    assert [TranscriptFile.create(tmp_path).path.name for _ in range(2)] == ["chat_1.json", "chat_2.json"]


def test_files_outside_the_directory_are_not_read(tmp_path):
    image(9).save(tmp_path / "secret.png")
    (tmp_path / "inner").mkdir()
    stored = example().to_dict(lambda _: "../secret.png")
    (tmp_path / "inner/talk.json").write_text(json.dumps(stored))
    assert Transcript.load(tmp_path / "inner/talk.json", vocabulary()).messages[0].images == (None,)


def test_attachments_are_kept_small_and_the_original_as_it_is():
    original = Image.new("RGB", (3000, 100))
    assert as_attachment(original).size == (1024, 34)
    assert original.size == (3000, 100)


def archive(name: str, content: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(name, content)
    return data.getvalue()


def changed(**message) -> bytes:
    stored = example().to_dict(lambda _: "x.png")
    stored["messages"][0] |= message
    return json.dumps(stored).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a conversation"),
        (b'{"kind": "conversation", "format": 2}', "not a conversation of format 1"),
        (b'{"kind": "conversation", "format": 1, "style": "base", "messages": [1]}', "pairs of question and answer"),
        (b'{"kind": "conversation", "format": 1, "style": "base", "messages": [1, 2]}', "message 1"),
        (changed(role="assistant"), "message 1: expected the \"role\" 'user'"),
        (changed(segments=[{"type": "text", "text": 3}]), "message 1: a segment is neither"),
        (changed(segments=[{"type": "image", "codes": [1.5]}]), "message 1: a segment is neither"),
        (changed(segments=[{"type": "image", "codes": [1] * 31}]), "31 codes, expected 32"),
        (changed(segments=[{"type": "image", "codes": [64] * 32}]), "0 to 63: load the conversation with the model"),
        (archive("other.json", b"{}"), "not an archive of a conversation"),
        (archive("conversation.json", b"{}"), "not a conversation"),
        (b"PK\x05\x06" + bytes(18), "not an archive of a conversation"),
        (None, "No such file"),
    ],
)
def test_other_files_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "talk.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Transcript.load(path, vocabulary())
    assert "talk.json" in str(caught.value)
    assert "\n" not in str(caught.value)
