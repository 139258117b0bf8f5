"""Parquet files, and data sets of tfds."""

import datetime
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from tests.data.sources.samples import all_samples, png, reasons, records, rendered, shown


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
        import io

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


def test_tfds_bad_input(tfds_folder, tmp_path):
    with pytest.raises(UserError, match=r"Split 'dev' of .*cannot be read"):
        open_source("tfds", [tfds_folder], split="dev")
    with pytest.raises(UserError, match="has the features captions, captions/id, captions/text, image, name, number"):
        open_source("tfds", [tfds_folder], columns=["caption"])
    with pytest.raises(UserError, match="contains no tfds datasets"):
        open_source("tfds", [tmp_path])
