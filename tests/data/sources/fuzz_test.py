"""Broken input of every kind: a clear sentence, or a counted sample; never another exception, never a wrong count."""

import base64
import contextlib
import gzip
import io
import json
import random
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seed_jax.data.build.encoding import PreparedSample
from seed_jax.data.build.filters import ORIGINAL_FILTERS, FilteredSample, ImageFilters
from seed_jax.data.build.preprocess import prepare
from seed_jax.data.sources import SOURCES, RawSample, SkippedSample, open_source
from seed_jax.data.sources.samples import Video
from seed_jax.errors import UserError
from tests.data.sources import pickles_test
from tests.data.sources.samples import Reds, png, tar

ROUNDS = 40


def lines(path, entries):
    path.write_text("\n".join(json.dumps(each) for each in entries))
    return path


def whole(path, content):
    path.write_text(json.dumps(content))
    return path


def caption(name="a.png"):
    return {"image": name, "caption": "a dog", "similarity": 0.3}


def captions(folder):
    return open_source("captions", [whole(folder / "c.json", [caption()] * 3)]), folder / "c.json"


def tables(folder):
    (folder / "c.csv").write_text('image,caption\na.png,"a ""red"" dog"\na.png,x\n')
    return open_source("captions", [folder / "c.csv"]), folder / "c.csv"


def folder_(folder):
    return open_source("folder", [lines(folder / "captions.jsonl", [caption()] * 3)]), folder / "captions.jsonl"


def text(folder):
    (folder / "t.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a river"}\n' * 5))
    return open_source("text", [folder / "t.jsonl.gz"]), folder / "t.jsonl.gz"


def coco(folder):
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    return open_source("coco", [whole(folder / "captions_x.json", content)]), folder / "captions_x.json"


def vqa(folder):
    questions = [{"image_id": 1, "question": "q", "question_id": 7}]
    annotations = [{"question_id": 7, "answers": [{"answer": "a"}]}]
    whole(folder / "x_questions.json", {"data_subtype": "train", "questions": questions})
    whole(folder / "x_annotations.json", {"annotations": annotations})
    return open_source("vqa", [folder / "x_questions.json", folder / "x_annotations.json"]), folder / "x_questions.json"


def annotations(folder):
    source, _ = vqa(folder)
    return source, folder / "x_annotations.json"


def ocr(folder):
    book = {"imageURL": "http://x/a.png", "questions": ["q", "r"], "answers": ["a", "b"], "split": 1}
    return open_source("vqa", [whole(folder / "ocr.json", {"a": book, "b": book})]), folder / "ocr.json"


def llava(folder):
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    entries = [{"image": "a.png", "conversations": turns}, {"image": ["a.png"], "data": ["q", "a"]}]
    return open_source("llava", [whole(folder / "l.json", entries)]), folder / "l.json"


def edits(folder):
    entry = {"source": "a.png", "target": "a.png", "instruction": "hat"}
    return open_source("edits", [lines(folder / "e.jsonl", [entry] * 3)]), folder / "e.jsonl"


def seeds(folder):
    (folder / "0").mkdir(exist_ok=True)
    whole(folder / "0" / "prompt.json", {"edit": "hat"})
    return open_source("edits", [whole(folder / "seeds.json", [["0", ["1", "2"]]])]), folder / "seeds.json"


def vist(folder):
    scenes = [
        [{"story_id": "s", "worker_arranged_photo_order": n, "photo_flickr_id": "a", "original_text": "x"}]
        for n in range(5)
    ]
    path = whole(folder / "x.story-in-sequence.json", {"images": [], "annotations": scenes})
    return open_source("vist", [path]), path


def mimicit(folder):
    whole(folder / "CGD.json", {"p": base64.b64encode(png(1)).decode(), "q": base64.b64encode(png(2)).decode()})
    question = {"instruction": "q", "answer": "a", "image_ids": ["p", "q"]}
    path = whole(folder / "CGD_instructions.json", {"data": {"1": question, "2": question}})
    return open_source("mimicit", [path], images=folder / "CGD.json"), path


def base64_images(folder):
    source, _ = mimicit(folder)
    return source, folder / "CGD.json"


def mmc4(folder):
    tar(folder / "d.tar", {"a.png": png(1)})
    info = {"image_name": "a.png", "matched_text_index": 0, "matched_sim": 0.3}
    with zipfile.ZipFile(folder / "d.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d.jsonl", "\n".join([json.dumps({"text_list": ["x", "y"], "image_info": [info]})] * 3))
    return open_source("mmc4", [folder / "d.jsonl.zip"], images=folder), folder / "d.jsonl.zip"


def mmc4_images(folder):
    source, _ = mmc4(folder)
    return source, folder / "d.tar"


def obelics(folder):
    rows = [{"images": [{"bytes": png(1)}, None], "texts": [None, "x"], "general_metadata": "{}"}] * 4
    pq.write_table(pa.Table.from_pylist(rows), folder / "o.parquet", row_group_size=2)
    return open_source("obelics", [folder / "o.parquet"]), folder / "o.parquet"


def parquet(folder):
    pq.write_table(pa.Table.from_pylist([{"image": png(1), "text": "x", "n": 1}] * 6), folder / "p.parquet")
    return open_source("parquet", [folder / "p.parquet"]), folder / "p.parquet"


def pickles(folder):
    path = pickles_test.shards(folder / "0.tar", list(pickles_test.SAMPLES.values())[:4])
    return open_source("pickles", [path]), path


def webdataset(folder):
    path = tar(folder / "w.tar", {"0.png": png(1), "0.txt": b"x", "0.json": b"{}", "1.png": png(2), "1.txt": b"y"})
    return open_source("webdataset", [path]), path


def videos(folder):
    pytest.importorskip("av")
    (folder / "v.mp4").write_bytes(b"no video")
    path = lines(folder / "v.jsonl", [{"video": "v.mp4", "caption": "x"}, {"video": "v", "q": "q", "a": "a"}])
    return open_source("videos", [path]), path


MAKERS = [captions, tables, folder_, text, coco, vqa, annotations, ocr, llava, edits, seeds, vist, mimicit]
MAKERS += [base64_images, mmc4, mmc4_images, obelics, parquet, pickles, webdataset, videos]


def broken(data: bytes, rng: random.Random) -> bytes:
    """Change, insert, remove or cut off some bytes; in JSON also whole words."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data)) if data else 0
        words = [
            b"null",
            b"[]",
            b"{}",
            b'"',
            b"\xff",
            b"\\ud800",
            b"\0",
            b"1e999",
            b"-1",
            b"true",
            b"{",
            b"]",
            b"9" * 30,
        ]
        change = rng.randrange(4)
        if change == 0 and data:
            data[place] = rng.randrange(256)
        elif change == 1:
            data[place:place] = rng.choice(words)
        elif change == 2:
            del data[place : place + rng.randint(1, 9)]
        else:
            del data[place + rng.randint(0, len(data)) :]
    return bytes(data)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_damaged_files_give_samples_or_one_sentence(make, tmp_path):
    rng, encoder, filters = random.Random(make.__name__), Reds(), ImageFilters(**ORIGINAL_FILTERS)
    (tmp_path / "a.png").write_bytes(png(3))
    source, path = make(tmp_path)
    data, kind = path.read_bytes(), source.kind
    assert any(source.count(file) for file in source.files)
    for _ in range(ROUNDS):
        path.write_bytes(broken(data, rng))
        images = getattr(getattr(source, "images", None), "location", getattr(source, "_images", None))
        options = {"images": images} if images else {}
        with contextlib.suppress(UserError):
            opened = open_source(kind, [file.path for file in source.files], **options)
            for file in opened.files:
                count = opened.count(file)
                samples = list(opened.read(file, 0, count))
                assert len(samples) == count
                for sample in samples:
                    assert isinstance(sample, RawSample | SkippedSample)
                    assert isinstance(
                        prepare(sample, encoder, filters), PreparedSample | SkippedSample | FilteredSample
                    )


def is_used_or_counted(item, reason):
    done = prepare(RawSample("x", (item, "a dog")), Reds())
    assert isinstance(done, PreparedSample) or (isinstance(done, SkippedSample) and done.reason == reason)
    return isinstance(done, PreparedSample)


@pytest.mark.filterwarnings("ignore")  # of Pillow, which still reads such files
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_broken_images_are_used_or_counted(kind):
    rng, file = random.Random(kind), io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(file, kind)
    images = [file.getvalue(), *(broken(file.getvalue(), rng) for _ in range(100)), b""]
    used = [is_used_or_counted(data, "unreadable image") for data in images]
    assert used[0]
    assert used.count(False) > 5


def test_broken_videos_are_used_or_counted(tmp_path):
    pytest.importorskip("av")
    from tests.data.sources.videos_test import film

    rng, path = random.Random(0), film(tmp_path / "v.mp4", range(0, 200, 20))
    whole = path.read_bytes()
    for _ in range(100):
        path.write_bytes(broken(whole, rng))
        is_used_or_counted(Video(path, 4), "unreadable video")
    path.write_bytes(whole.replace(b"minf", b"free"))  # without what names the codec, a stream has no size either
    assert not is_used_or_counted(Video(path, 4), "unreadable video")


def test_every_kind_is_fuzzed(tmp_path):
    made = set()
    for make in MAKERS:
        folder = tmp_path / make.__name__
        folder.mkdir()
        made.add(make(folder)[0].kind)
    assert made == set(SOURCES) - {"tfds", "world"}  # the files of tfds are checked by it; a world is drawn
