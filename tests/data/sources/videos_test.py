"""Lists of videos, and which frames are taken."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_jax import video
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from tests.data.sources.samples import Reds, all_samples, reasons, records, rendered

av = pytest.importorskip("av")


def film(path, levels, rate=5):
    """Write a video whose frames are grey, one level each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate)
        stream.width = stream.height = 32
        stream.bit_rate = 10**7
        for level in levels:
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (level, level, level)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(images):
    return [int(np.asarray(image).mean()) for image in images]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [10]), (4, [2, 7, 12, 17]), (8, [1, 3, 6, 8, 11, 13, 16, 18]), (20, list(range(20)))],
)
def test_frames_come_from_the_middle_of_equal_intervals(tmp_path, count, expected):
    path = film(tmp_path / "a.mp4", [10 * number for number in range(20)])
    # Within 4 grey levels: the encoding is lossy; neighbouring frames are 10 apart.
    np.testing.assert_allclose(levels(video.frames(path, count)), [10 * number for number in expected], atol=4)


def test_a_short_video_repeats_its_frames(tmp_path):
    path = film(tmp_path / "a.mp4", [50])
    np.testing.assert_allclose(levels(video.frames(path, 4)), [50] * 4, atol=4)


@pytest.mark.parametrize("change", ["empty", "text", "cut"])
def test_files_that_are_not_videos_are_one_sentence(tmp_path, change):
    path = film(tmp_path / "a.mp4", range(0, 200, 10))
    data = {"empty": b"", "text": b"<html>", "cut": path.read_bytes()[:900]}[change]
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"Cannot read .*a.mp4: .*; replace or remove it.$"):
        video.frames(path, 4)


def turned(path, matrix):
    """Write the display matrix (a, b, c, d) into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 4 + 40  # version 0: times, track, duration, layer, volume
    a, b, c, d = matrix
    data[begin : begin + 36] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "transform"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # a telephone held upright: clockwise
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),  # mirrored, as by a front camera
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
    ids=["0", "clockwise", "180", "anticlockwise", "mirrored", "transposed"],
)
def test_frames_are_turned_as_the_display_matrix_says(tmp_path, matrix, transform):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32], pixels[:16, 32:], pixels[16:, :32] = 255, (255, 0, 0), (0, 0, 255)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", 5)
        stream.width, stream.height, stream.bit_rate = 64, 32, 10**7
        container.mux(stream.encode(av.VideoFrame.from_image(Image.fromarray(pixels))))
        container.mux(stream.encode())
    turned(path, matrix)
    (frame,) = video.frames(path, 1)
    expected = transform(pixels)
    assert frame.size == (expected.shape[1], expected.shape[0])
    # Lossy at the edges of the quarters; another orientation differs by 60 and more.
    assert np.abs(np.asarray(frame).astype(int) - expected).mean() < 20


def test_only_local_regular_files_of_self_contained_formats_are_read(tmp_path):
    film(tmp_path / "a.mp4", [50])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    (tmp_path / "stream.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n")
    os.mkfifo(tmp_path / "fifo.mp4")
    names = ["list.mp4", "stream.mp4", "fifo.mp4", "http://127.0.0.1:9/a.mp4", f"concat:{tmp_path}/a.mp4"]
    for path in [Path(tmp_path, name) for name in names] + [Path(names[3]), Path(names[4]), Path("/dev/zero")]:
        with pytest.raises(UserError, match="Cannot read"):
            video.frames(path, 1)


@pytest.mark.parametrize("name", ["a:b.mp4", "a.mkv", "a.avi", "a.ts", "a.mov", "a.gif"])
def test_formats_and_names(tmp_path, monkeypatch, name):
    film(tmp_path / "first.mp4", [50])
    path = tmp_path / name
    with av.open(str(tmp_path / "first.mp4")) as source, av.open(f"file:{path}", "w") as container:
        codec, pixel_format = ("gif", "gray") if name.endswith("gif") else ("mpeg4", "yuv420p")
        stream = container.add_stream(codec, 5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, pixel_format
        for frame in source.decode(video=0):
            container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode())
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(levels(video.frames(Path(name), 1)), [50], atol=6)  # lossy


@pytest.fixture
def folder(tmp_path):
    film(tmp_path / "v/000_050/11.mp4", [10] * 8)
    film(tmp_path / "v/video7.avi", [60] * 8)
    film(tmp_path / "v/v_abc.mp4", [100] * 16)
    (tmp_path / "v/broken.mp4").write_bytes(b"no video")
    return tmp_path


def test_webvid_lists(folder):
    rows = ["videoid,contentUrl,duration,page_dir,name", '11,http://x,PT00H,000_050,"A cat, asleep"', "99,u,P,d,Gone"]
    (folder / "results.csv").write_text("\n".join(rows))
    source = open_source("videos", [folder / "results.csv"], images=folder / "v")
    assert reasons(all_samples(source)) == [None, "missing video"]
    (found,) = records(source, folder / "out")
    assert [type(item) for item in found.items] == [np.ndarray] * 4 + [str]
    assert found.items[4] == "A cat, asleep"
    assert found.meta["videoid"] == "11"
    assert open_shards(folder / "out").manifest.options == {"frames": 4}
    rendered(found, "pretrain.video_caption")


def test_questions_about_videos(folder):
    entries = [
        {"q": "What happens?", "a": "Nothing.", "video_id": "v_abc"},
        {"question": "Who?", "answer": "me", "video": 7, "id": 3},
        {"question": "Who?", "answer": "me", "video": "broken.mp4"},
        {"question": "Who?", "video": "v_abc"},
        {"question": "Who?", "answer": "me"},
    ]
    (folder / "q.json").write_text(json.dumps(entries))
    source = open_source("videos", [folder / "q.json"], images=folder / "v", frames=8)
    assert reasons(all_samples(source)) == [None, None, None, "no answer", "no video name"]
    found = records(source, folder / "out")
    assert [len(each.items) for each in found] == [9, 9]
    assert (found[0].meta["question"], found[0].items[-1]) == ("What happens?", "Nothing.")
    assert open_shards(folder / "out").manifest.dropped["unreadable video"] == 1
    rendered(found[0], "sft.video_qa")


def test_without_an_encoder_frames_are_stored_as_images(folder):
    from seed_jax.data.build.build import build
    from seed_jax.data.build.options import BuildOptions

    (folder / "c.jsonl").write_text('{"video": "v_abc", "caption": "x"}')
    source = open_source("videos", [folder / "c.jsonl"], images=folder / "v", frames=2)
    build(source, folder / "out", options=BuildOptions(progress=False))
    (record,) = open_shards(folder / "out")
    assert [type(item) for item in record.items] == [bytes, bytes, str]
    with_codes = records(source, folder / "codes")[0]
    import io

    images = [Image.open(io.BytesIO(item)) for item in record.items[:2]]
    reds = Reds().encode(np.stack([Reds().prepare(image) for image in images]))
    np.testing.assert_array_equal(reds, with_codes.items[:2])  # lossless
