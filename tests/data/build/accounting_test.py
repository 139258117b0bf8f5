"""Every input sample of every source becomes a record or is counted with a reason, damaged files included."""

import json
import random

import pytest

from seed_jax.data.build.build import build
from seed_jax.data.build.filters import ORIGINAL_FILTERS, ImageFilters
from seed_jax.data.build.options import BuildOptions, SkipLimit
from seed_jax.data.shards.shards import open_shards
from seed_jax.errors import UserError
from tests.data.sources.samples import Reds
from tests.fuzz.readers import READERS, open_at

SOURCE_READERS = [reader for reader in READERS if reader.open]
OPTIONS = {"max_skipped": SkipLimit(fraction=1.0), "progress": False, "workers": 1, "shard_size": 2}


@pytest.mark.filterwarnings("ignore")  # of the decoders
@pytest.mark.parametrize("reader", SOURCE_READERS, ids=lambda reader: reader.name)
def test_records_and_dropped_samples_are_all_input_samples(reader, tmp_path):
    (tmp_path / "in").mkdir()
    seeds = reader.seeds(tmp_path / "in")
    contents = [path.read_bytes() for path in seeds]
    built = 0
    for number in range(5):
        out = tmp_path / f"out{number}"
        rng = random.Random(number)
        if number:  # the first build is of the files as they are
            seeds[number % len(seeds)].write_bytes(reader.mutate(contents[number % len(seeds)], rng, contents))
        filters = ImageFilters(**ORIGINAL_FILTERS) if number % 2 else ImageFilters()
        try:
            source = reader.open(seeds[0])
            samples = sum(source.count(file) for file in source.files)
            if samples > 100:  # a description of scenes may ask for a billion
                continue
            manifest = build(source, out, encoder=Reds(), options=BuildOptions(filters=filters, **OPTIONS))
        except UserError:  # the file as a whole is refused
            assert number
            continue
        finally:
            for path, content in zip(seeds, contents, strict=True):
                path.write_bytes(content)
        built += 1
        log = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
        assert manifest.records + sum(manifest.dropped.values()) == samples
        assert len(log) <= sum(manifest.dropped.values())
        if manifest.records:
            assert len(list(open_shards(out, verify=True))) == manifest.records
    assert built


def test_reports_that_do_not_add_up_are_refused(tmp_path):
    reader = next(reader for reader in SOURCE_READERS if reader.name == "source text")
    (tmp_path / "in").mkdir()
    (seed,) = reader.seeds(tmp_path / "in")
    source = open_at("text", seed)
    assert build(source, tmp_path / "out", options=BuildOptions(**OPTIONS)).records == 5
    (tmp_path / "out" / "manifest.json").unlink()
    plan = json.loads((tmp_path / "out" / "build" / "plan.json").read_text())
    for shard in range(3):
        path = tmp_path / "out" / f"shard-{shard:06d}.array_record"
        file = {"name": path.name, "records": 1, "bytes": path.stat().st_size, "sha256": "0" * 64}
        report = {"file": file, "items": {}, "skipped": [], "filtered": {}, "images_left_out": {}}
        (tmp_path / "out" / "build" / f"shard-{shard:06d}.json").write_text(json.dumps(report))
    assert plan["shard_size"] == 2
    with pytest.raises(UserError, match="accounts for 3 of 5"):
        build(source, tmp_path / "out", options=BuildOptions(**OPTIONS))
