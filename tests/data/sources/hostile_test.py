"""Inputs that are meant to hang or to exhaust memory; larger ones are in `tests/fuzz/bombs.py`."""

import gzip
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seed_jax.data.sources import SOURCES, open_source
from seed_jax.data.sources.tar_groups import groups
from seed_jax.errors import UserError
from seed_jax.files import MAX_TEXT_BYTES
from tests.data.sources.samples import all_samples, png, reasons, tar
from tests.fuzz.bombs import BOMBS


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_fifos_and_devices_are_refused_before_they_are_opened(kind, tmp_path):
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for path in (tmp_path / "fifo.tar", tmp_path / "zero.json"):
        with pytest.raises(UserError, match=r"not a regular file|expected"):
            open_source(kind, [path])


def test_a_fifo_in_a_folder_of_tars_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UserError, match="not a regular file"):
        open_source("webdataset", [tmp_path])


def test_headers_that_extend_each_other_without_end_are_damage(tmp_path):
    BOMBS["chain.tar"].make(tmp_path / "a.tar")
    (sample,) = all_samples(open_source("webdataset", [tmp_path / "a.tar"]))
    assert sample.reason == "damaged archive"


def test_headers_of_any_size_are_damage(tmp_path):
    info = tarfile.TarInfo("x")
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        info.type, info.size = kind, 8 * 2**30
        with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
        assert reasons(all_samples(open_source("webdataset", [tmp_path / "a.tar.gz"]))) == ["damaged archive"]


def test_frames_of_a_video_with_one_name_are_read_in_parts(tmp_path, monkeypatch):
    """`video.000001.png` and so on are one group by WebDataset's rule, and would all be in memory."""
    monkeypatch.setattr("seed_jax.data.sources.tar_groups.MAX_MEMBERS", 4)
    members = {f"video.{n:06d}.{end}": c for n in range(9) for end, c in (("png", png(n)), ("txt", b"x"))}
    path = tar(tmp_path / "a.tar", members)
    assert reasons(all_samples(open_source("webdataset", [path]))) == [None] * 9
    monkeypatch.setattr("seed_jax.data.sources.tar_groups.MAX_CONTENT_BYTES", 100)
    parts = list(groups(path, 0, 9, {"png": "image", "txt": "text"}))
    assert len(parts) == 9
    assert {group.problem.reason for group in parts if group.problem} == {"file in archive too large"}


def test_a_deep_list_is_damage(tmp_path):
    (tmp_path / "c.json").write_text('[{"image": "a.png", "caption": "x"}, ' + "[" * 100_000)
    kinds = reasons(all_samples(open_source("captions", [tmp_path / "c.json"])))
    assert kinds == [None, "damaged file"]
    (tmp_path / "c.jsonl").write_text("[" * 100_000)
    assert reasons(all_samples(open_source("captions", [tmp_path / "c.jsonl"]))) == ["line is not JSON"]


def test_one_value_in_many_rows_is_read_row_by_row(tmp_path):
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), pa.array([png(1)], pa.binary()))
    rows = pa.table({"image": column, "text": pa.array(["x"] * 40)})
    pq.write_table(rows, tmp_path / "a.parquet")
    samples = all_samples(open_source("parquet", [tmp_path / "a.parquet"]))
    assert [sample.items for sample in samples] == [(png(1), "x")] * 40


def test_a_text_in_a_tar_is_of_limited_size(tmp_path):
    """Parsed JSON takes up to twenty times the memory of its text."""
    (tmp_path / "seeds.json").write_text('[["0", ["1"]], ["1", ["1"]]]')
    members = {f"{n}/1_{number}.jpg": png(n) for n in (0, 1) for number in (0, 1)}
    prompts = {"0/prompt.json": b'{"edit": "hat"}', "1/prompt.json": b'{"edit": "hat"}' + b" " * MAX_TEXT_BYTES}
    source = open_source("edits", [tmp_path / "seeds.json"], images=tar(tmp_path / "a.tar", members | prompts))
    assert reasons(all_samples(source)) == [None, "no instruction"]
