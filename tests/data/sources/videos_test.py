"""Lists of videos, and which frames are taken."""

import json

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
