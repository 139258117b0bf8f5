"""Parquet files, and data sets of tfds."""

import base64
import datetime
import io
import json
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from seed_jax.data.build.options import SkipLimit
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.data.sources.image_lookup import is_image_file
from seed_jax.errors import UserError
from tests.data.sources.samples import all_samples, png, reasons, records, rendered, shown, write_images


def parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def image(red):
    return {"bytes": png(red), "path": f"{red}.png"}


def test_a_known_layout_needs_no_columns(tmp_path):
    rows = [
        {"img_id": str(n), "turn_index": n, "source_img": image(n), "mask_img": image(99), "target_img": image(n + 2)}
        | {"instruction": f"edit {n}"}
        for n in range(0, 40, 2)
    ]
    source = open_source("parquet", [parquet(tmp_path / "m.parquet", rows, row_group_size=7)])
    found = records(source, tmp_path / "out")
    assert [shown(each) for each in found] == [[n, n + 2, f"edit {n}"] for n in range(0, 40, 2)]
    assert found[3].meta == {"img_id": "6", "turn_index": 6}  # and not the mask
    rendered(found[0], "sft.edit")


def test_named_columns_lists_and_what_cannot_be_stored(tmp_path):
    day = datetime.datetime(2020, 1, 1)
    rows = [
        {"pics": [image(10), image(20)], "texts": ["q", "a"], "n": 2**64 - 1, "day": day, "half": 0.5},
        {"pics": [image(10), None], "texts": ["q", "a"], "n": 1, "day": day, "half": None},
        {"pics": [], "texts": [], "n": 1, "day": day, "half": None},
        {"pics": [image(10)], "texts": [], "n": 1, "day": day, "half": None},
    ]
    schema = pa.schema(
        [
            ("pics", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
            ("texts", pa.list_(pa.string())),
            ("n", pa.uint64()),
            ("day", pa.timestamp("s")),
            ("half", pa.float64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "t.parquet")
    source = open_source("parquet", [tmp_path / "t.parquet"], columns=["pics", "texts"])
    assert reasons(all_samples(source)) == [None, "empty cell", None, None]
    found = records(source, tmp_path / "out")  # a sample with nothing in it is not one
    assert [shown(each) for each in found] == [[10, 20, "q", "a"], [10]]
    assert found[0].meta == {"n": str(2**64 - 1), "half": 0.5}
    rendered(found[0], "sft.difference")


@pytest.mark.parametrize("kind", ["name", "base64", "uri", "struct", "list"])
def test_images_that_are_not_bytes_are_read(tmp_path, kind):
    write_images(tmp_path / "p", {"a.png": 10, "sub/b.png": 20})
    names, reds = ["a.png", "sub/b.png"], [10, 20]
    encoded = [base64.b64encode(png(red)).decode() for red in reds]
    cells = {
        "name": names,
        "base64": encoded,
        "uri": [f"data:image/png;base64,{text}" for text in encoded],
        "struct": [{"bytes": None, "path": name} for name in names],
        "list": [[name] for name in names],
    }[kind]
    path = parquet(tmp_path / "t.parquet", [{"image": cell, "caption": "a.png"} for cell in cells])
    source = open_source("parquet", [path], images=tmp_path / "p")
    assert [shown(record) for record in records(source, tmp_path / "out")] == [[red, "a.png"] for red in reds]


def test_image_names_never_become_texts(tmp_path):
    write_images(tmp_path, {"a.png": 10})
    names = ["a.png", "gone.png", "http://x/a.jpg", "n/a", "../a.png"]
    path = parquet(tmp_path / "t.parquet", [{"image": name, "file": name, "text": "x"} for name in names])
    reasons_of_names = ["missing image", "image is not downloaded", "missing image", "unsafe image name"]
    source = open_source("parquet", [path])
    assert [shown(record) for record in records(source, tmp_path / "out")] == [[10, "x"]]
    assert open_shards(tmp_path / "out").manifest.dropped == dict(Counter(reasons_of_names))
    source = open_source("parquet", [path], columns=["file", "text"])  # a name that says nothing
    assert [shown(record) for record in records(source, tmp_path / "file")] == [[10, "x"], ["n/a", "x"]]


def test_columns_declared_as_images_by_the_datasets_library(tmp_path):
    write_images(tmp_path, {"scan 1": 10})
    table = pa.table({"page": ["scan 1"], "text": ["x"]})
    features = {"info": {"features": {"page": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "t.parquet")
    source = open_source("parquet", [tmp_path / "t.parquet"], columns=["page", "text"])
    assert [shown(record) for record in records(source, tmp_path / "out")] == [[10, "x"]]


def test_conversations_in_columns(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    others = [[{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}], turns[:1], [{"x": "y"}]]
    for number, column in enumerate([turns, *others]):
        rows = [{"conversations": column, "image": image(10), "id": str(number)}]
        source = open_source("parquet", [parquet(tmp_path / f"{number}.parquet", rows)])
        if number < 2:
            (record,) = records(source, tmp_path / f"out{number}")
            assert shown(record) == [10, "What?", "Red."]
            rendered(record, "sft.conversation")
        else:
            assert reasons(all_samples(source)) == ["no answer" if number == 2 else "a cell is neither text nor image"]


def test_failed_downloads_of_img2dataset_are_no_reason_to_stop(tmp_path):
    rows = [{"jpg": png(10), "caption": "x", "status": "success", "error_message": None}] * 3
    rows += [{"jpg": None, "caption": "x", "status": "failed_to_download", "error_message": "404"}] * 2
    source = open_source("parquet", [parquet(tmp_path / "00000.parquet", rows)])
    found = records(source, tmp_path / "out", max_skipped=SkipLimit(number=0))
    assert [shown(record) for record in found] == [[10, "x"]] * 3
    assert open_shards(tmp_path / "out").manifest.dropped == {"image was not downloaded": 2}
    assert (tmp_path / "out/bad.jsonl").read_text() == ""


def test_parquet_bad_input(tmp_path):
    path = parquet(tmp_path / "t.parquet", [{"x": 1, "y": "a"}])
    with pytest.raises(UserError, match="has the columns x, y: name those with images and texts with --columns"):
        open_source("parquet", [path])
    with pytest.raises(UserError, match="has no column z: choose from x, y"):
        open_source("parquet", [path], columns=["z"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"t.parquet is not a complete parquet file"):
        open_source("parquet", [path], columns=["x"])
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="is not a complete parquet file"):
        open_source("parquet", [path])


def test_a_damaged_row_group_is_counted(tmp_path):
    plain = {"compression": "none", "use_dictionary": False}
    path = parquet(tmp_path / "t.parquet", [{"text": f"text {n} " * 20} for n in range(20)], row_group_size=10, **plain)
    data = bytearray(path.read_bytes())
    place = data.index(b"text 10 text")  # the first of the second group, behind the header of its page
    data[place - 40 : place] = b"\xff" * 40
    path.write_bytes(data)
    samples = all_samples(open_source("parquet", [path]))
    assert reasons(samples) == [None] * 10 + ["damaged row group"] * 10


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "number": np.int64,
            "name": tfds.features.Text(),
        }
    )
    root = tmp_path_factory.mktemp("tfds")

    def examples():
        for n in range(6):
            captions = [{"id": n, "text": f"caption {n}"}, {"id": n, "text": "again"}][: 2 - n % 2]
            yield n, {"image": io.BytesIO(png(10 * n)), "captions": captions, "number": n, "name": f"n{n}"}

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": examples(), "test": examples()}

        def _generate_examples(self):
            return iter(())

    builder = Tiny(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return root


def test_tfds_without_tensorflow(tfds_folder, tmp_path):
    source = open_source("tfds", [tfds_folder])
    assert source.options == {"split": "train", "columns": ["image", "captions/text"]}
    found = sorted(records(source, tmp_path / "out"), key=lambda record: record.meta["number"])
    assert [shown(each) for each in found] == [
        [10 * n, f"caption {n}", "again"] if n % 2 == 0 else [10 * n, f"caption {n}"] for n in range(6)
    ]
    assert found[3].meta == {"number": 3, "name": "n3"}
    rendered(found[0], "pretrain.image_text_pair")
    assert "tensorflow" not in sys.modules
    text = records(open_source("tfds", [tfds_folder], split="test", columns=["name"]), tmp_path / "text")
    assert sorted(each.items for each in text) == [(f"n{n}",) for n in range(6)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_image_files_are_told_from_texts(kind):
    file = io.BytesIO()
    Image.new("RGB", (6, 5)).save(file, kind)
    assert is_image_file(file.getvalue())
    assert not any(map(is_image_file, (b"BMW of 1972, parked beside a lake", b"GIFT shop", b"RIFF raff", b"II", b"")))


def test_tfds_bad_input(tfds_folder, tmp_path):
    with pytest.raises(UserError, match=r"Split 'dev' of .*cannot be read"):
        open_source("tfds", [tfds_folder], split="dev")
    with pytest.raises(UserError, match="has the features captions, captions/id, captions/text, image, name, number"):
        open_source("tfds", [tfds_folder], columns=["caption"])
    with pytest.raises(UserError, match="contains no tfds datasets"):
        open_source("tfds", [tmp_path])
