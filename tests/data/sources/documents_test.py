"""Interleaved documents: MMC4 and OBELICS."""

import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seed_jax.data.build.filters import ImageFilters
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from tests.data.sources.samples import all_samples, png, reasons, records, rendered, shown, tar


def image(name, place, similarity=0.3):
    return {"image_name": name, "raw_url": "http://x", "matched_text_index": place, "matched_sim": similarity}


MMC4 = [
    {
        "url": "http://page",
        "text_list": ["One.", "Two.", "Three."],
        "image_info": [image("b.png", 2), image("a.png", 0), image("lost.png", 1)],
        "similarity_matrix": [[0.3, 0.1, 0.0]],
    },
    {"text_list": ["Only."], "image_info": [image("lost.png", 0)]},
    {"text_list": ["x", 7], "image_info": []},
    {"text_list": ["First.", "Second."], "image_info": [image("a.png", 0, 0.1), image("b.png", 1, 0.4)]},
    {"text_list": ["Weak."], "image_info": [image("a.png", 0, 0.1)]},
    {"text_list": ["Away."], "image_info": [image("a.png", 9), image("broken.png", 0), image("a.png", 0)]},
]


@pytest.fixture
def mmc4(tmp_path):
    members = {"a.png": png(10), "b.png": png(20), "broken.png": b"\x89PNG broken"}
    tar(tmp_path / "docs_shard_0_v2.tar", members)
    lines = "\n".join(map(json.dumps, MMC4))
    with zipfile.ZipFile(tmp_path / "docs_shard_0_v2.jsonl.zip", "w") as archive:
        archive.writestr("docs_shard_0_v2.jsonl", lines)
    return open_source("mmc4", [tmp_path / "docs_shard_0_v2.jsonl.zip"], images=tmp_path)


def test_mmc4_puts_images_before_their_texts(mmc4, tmp_path):
    lost = "no image of the document is available"
    assert reasons(all_samples(mmc4)) == [None, lost, "not a document", None, None, None]
    found = records(mmc4, tmp_path / "out")
    assert [shown(each) for each in found] == [
        [10, "One.", "Two.", 20, "Three."],
        [10, "First.", 20, "Second."],
        [10, "Weak."],
        [10, "Away."],
    ]
    assert found[0].meta == {"url": "http://page"}
    manifest = open_shards(tmp_path / "out").manifest
    assert manifest.images_left_out == {"unreadable image": 1}
    rendered(found[0], "pretrain.interleaved")


def test_a_form_feed_in_a_document_becomes_a_space(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10))
    document = {"text_list": ["One\f\vpage.", "Two."], "image_info": [image("a.png", 1)]}
    (tmp_path / "d.jsonl").write_text(json.dumps(document))
    (record,) = records(open_source("mmc4", [tmp_path / "d.jsonl"], images=tmp_path), tmp_path / "out")
    assert shown(record) == ["One  page.", 10, "Two."]


def test_mmc4_filters_images_not_documents(mmc4, tmp_path):
    found = records(mmc4, tmp_path / "out", filters=ImageFilters(min_similarity=0.2))
    assert [shown(each) for each in found] == [
        [10, "One.", "Two.", 20, "Three."],
        ["First.", 20, "Second."],
        [10, "Away."],
    ]
    manifest = open_shards(tmp_path / "out").manifest
    assert manifest.images_left_out == {"similarity below 0.2": 1, "unreadable image": 1}
    assert manifest.dropped == {
        "no image of the document is left": 1,
        "no image of the document is available": 1,
        "not a document": 1,
    }
    assert manifest.filters == {"min_similarity": 0.2}


def test_mmc4_uses_the_tars_named_like_the_list(tmp_path):
    for name, red in (("one", 10), ("two", 20)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text_list": ["x"], "image_info": [image("a.png", 0)]}))
        (tmp_path / "p" / name).mkdir(parents=True)
        tar(tmp_path / "p" / name / "00000.tar", {"a.png": png(red)})
    source = open_source("mmc4", [tmp_path / "one.jsonl", tmp_path / "two.jsonl"], images=tmp_path / "p")
    assert [shown(each) for each in records(source, tmp_path / "out")] == [[10, "x"], [20, "x"]]


def parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


OBELICS = [
    {
        "images": ["http://a", None, "http://lost", "http://b"],
        "texts": [None, "First.", None, None],
        "metadata": "[]",
        "general_metadata": json.dumps({"url": "http://page"}),
    },
    {"images": ["http://lost", None], "texts": [None, "Alone."], "metadata": "[]", "general_metadata": "{"},
    {"images": ["http://a"], "texts": [], "metadata": "[]", "general_metadata": None},
    {"images": [None, "http://b"], "texts": ["Last.", None], "metadata": "[]", "general_metadata": None},
]


def test_obelics_finds_images_by_address(tmp_path):
    members = {}
    for key, (address, red) in enumerate({"http://a": 10, "http://b": 20}.items()):
        members |= {f"{key:09d}.png": png(red), f"{key:09d}.json": json.dumps({"url": address}).encode()}
    tar(tmp_path / "00000.tar", members | {"x.json": b"{", "y.json": b"[]", "z.png": png(1)})
    source = open_source("obelics", [parquet(tmp_path / "o.parquet", OBELICS, row_group_size=2)], images=tmp_path)
    assert reasons(all_samples(source)) == [None, "no image of the document is available", "not a document", None]
    found = records(source, tmp_path / "out")
    assert [shown(each) for each in found] == [[10, "First.", 20], ["Last.", 20]]
    assert found[0].meta == {"url": "http://page"}
    rendered(found[0], "pretrain.interleaved")


def test_obelics_with_the_images_inside(tmp_path):
    rows = [{"images": [{"bytes": png(10), "path": None}, None], "texts": [None, "A dog."]}]
    source = open_source("obelics", [parquet(tmp_path / "o.parquet", rows)])
    assert shown(records(source, tmp_path / "out")[0]) == [10, "A dog."]


def test_obelics_bad_input(tmp_path):
    with pytest.raises(UserError, match="has the columns x, expected images and texts"):
        open_source("obelics", [parquet(tmp_path / "o.parquet", [{"x": 1}])])
    with pytest.raises(UserError, match="--images gone does not exist"):
        open_source("obelics", [tmp_path / "o.parquet"], images="gone")
