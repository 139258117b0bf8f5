"""Histogram of codes by literals, and over shards."""

import numpy as np
import pytest

from seed_jax.data.inspect.code_usage import code_stats, most_frequent_codes, shard_code_stats
from seed_jax.data.shards import manifest
from seed_jax.data.shards.manifest import Manifest
from seed_jax.data.shards.records import Record, encode
from seed_jax.data.shards.shards import shard_name, write_shard
from seed_jax.errors import UserError
from seed_jax.inference.language_model import read_draft_codes


def test_counts_use_and_perplexity():
    stats = code_stats([np.array([0, 0, 1, 1]), np.array([2, 2, 3, 3])], num_codes=8)
    np.testing.assert_array_equal(stats.counts, [2, 2, 2, 2, 0, 0, 0, 0])
    assert (stats.num_images, stats.used) == (2, 4)
    assert stats.perplexity == pytest.approx(4.0)
    assert code_stats([np.array([5, 5, 5])], 8).perplexity == pytest.approx(1.0)
    assert code_stats([], 8).perplexity == 0.0


def test_lines_show_the_histogram():
    lines = code_stats([np.array([0] * 5 + [1])], num_codes=4).lines()
    assert "used: 2 of 4 (50.0%)" in lines[1]
    assert [line.split()[:2] for line in lines[3:]] == [["0", "2"], ["1-1", "1"], ["2-3", "0"], ["4-7", "1"]]


def test_over_shards(tmp_path):
    codes = [np.full(32, 7, np.uint16), np.arange(32, dtype=np.uint16)]
    records = [encode(Record(str(i), "test", ("text", each))) for i, each in enumerate(codes)]
    shard = write_shard(tmp_path / shard_name(0), records)
    manifest.save(tmp_path, Manifest("test", (shard,), {"codes": 2, "texts": 2}, tokenizer="t"))
    stats = shard_code_stats(tmp_path, 64)
    assert stats.num_images == 2
    assert stats.counts[7] == 33
    assert stats.used == 32


def test_the_most_frequent_code_of_each_position_is_the_draft(tmp_path, capsys):
    from seed_jax import cli

    codes = [np.full(32, 7, np.uint16), np.arange(32, dtype=np.uint16), np.arange(32, dtype=np.uint16)[::-1]]
    records = [encode(Record(str(i), "test", ("text", image_codes, codes[1]))) for i, image_codes in enumerate(codes)]
    shard = write_shard(tmp_path / shard_name(0), records)
    manifest.save(tmp_path, Manifest("test", (shard,), {"codes": 6, "texts": 3}, tokenizer="t"))
    assert most_frequent_codes([tmp_path, tmp_path]) == list(range(32))
    assert most_frequent_codes([tmp_path], max_images=1) == [7] * 32
    out = tmp_path / "draft_codes.json"
    assert not cli.main(["data", "draft-codes", str(tmp_path), "--out", str(out)])
    assert read_draft_codes(tmp_path, out) == list(range(32))
    (tmp_path / "other").mkdir()
    other = write_shard(tmp_path / "other" / shard_name(0), records)
    manifest.save(tmp_path / "other", Manifest("test", (other,), {"codes": 6, "texts": 3}, tokenizer="u"))
    with pytest.raises(UserError, match="different image tokenizers"):
        most_frequent_codes([tmp_path, tmp_path / "other"])
    text = write_shard(tmp_path / shard_name(0), [encode(Record("0", "test", ("text",)))])
    manifest.save(tmp_path, Manifest("test", (text,), {"texts": 1}))
    assert cli.main(["data", "draft-codes", str(tmp_path), "--out", str(out)]) == 2
    assert "no codes of images" in capsys.readouterr().err


def test_codes_beyond_the_codebook_are_refused():
    with pytest.raises(UserError, match="code 9, but the codebook has 8"):
        code_stats([np.array([9])], 8)


def test_data_show_prints_it(tmp_path, capsys):
    from seed_jax import cli

    record = encode(Record("0", "test", (np.arange(32, dtype=np.uint16),)))
    manifest.save(tmp_path, Manifest("test", (write_shard(tmp_path / shard_name(0), [record]),), {"codes": 1}))
    assert not cli.main(["data", "show", str(tmp_path), "--codes", "64"])
    assert "used: 32 of 64 (50.0%); perplexity 32.0; unused 32" in capsys.readouterr().out
