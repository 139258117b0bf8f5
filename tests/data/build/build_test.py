import collections
import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from seed_jax.data.build.build import build
from seed_jax.data.build.options import BuildOptions, Share, SkipLimit
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from tests.data.sources.samples import Colours, png, tar

KILLS = int(os.environ.get("SEED_JAX_KILLS", "6"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two tars of 23 samples, one of them with a broken image."""
    root = tmp_path_factory.mktemp("inputs")
    names = {}
    for number in range(23):
        data = b"no image" if number == 7 else png(number)
        names[number] = {f"{number:03d}.png": data, f"{number:03d}.txt": f"Image {number}.".encode()}
    for name, numbers in (("a.tar", range(10)), ("b.tar", range(10, 23))):
        tar(root / name, {key: value for number in numbers for key, value in names[number].items()})
    return root


def options(**changes):
    return BuildOptions(
        **({"shard_size": 5, "workers": 2, "max_skipped": SkipLimit(number=1), "progress": False} | changes)
    )


def content(directory):
    """Return every file with its bytes, locks apart."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("lock"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def built(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    encoder = Colours()
    build(open_source("webdataset", [inputs]), out, encoder=encoder, options=options())
    return out, encoder


def test_records_are_those_of_the_source_in_order(built):
    shards = open_shards(built[0], tokenizer="c" * 64, verify=True)
    good = [number for number in range(23) if number != 7]
    assert [record.items[1] for record in shards] == [f"Image {number}." for number in good]
    assert [record.items[0][:3].tolist() for record in shards] == [[n, n // 2, 255 - n] for n in good]
    assert shards[0].id == "a.tar/000"
    assert shards[0].source == "webdataset"


def test_manifest_and_log_name_skipped_samples(built):
    manifest = open_shards(built[0]).manifest
    assert manifest.items == {"codes": 22, "texts": 22}
    assert manifest.dropped == {"unreadable image": 1}
    assert (manifest.tokenizer, manifest.preprocessing) == ("c" * 64, {"size": 4})
    assert [shard.records for shard in manifest.shards] == [5, 4, 5, 5, 3]
    (line,) = (built[0] / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "a.tar/007"
    assert sorted(content(built[0])) == [
        "bad.jsonl",
        "build/plan.json",
        "manifest.json",
        *(f"shard-{shard:06d}.array_record" for shard in range(5)),
    ]


def test_batches_do_not_cross_shards(built):
    # Shards of 5, 4, 5, 5 and 3 images, batches of 3.
    assert built[1].batches == [3, 2, 3, 1, 3, 2, 3, 2, 3]


def test_reading_and_decoding_overlap_with_encoding(inputs, tmp_path):
    read, decoded = (collections.defaultdict(threading.Event) for _ in range(2))
    source = open_source("webdataset", [inputs])

    class Watched:
        kind, files, options, count = source.kind, source.files, source.options, staticmethod(source.count)

        def read(self, *place):
            for number, sample in enumerate(source.read(*place)):
                read[number].set()
                yield sample

    class Waiting(Colours):
        def prepare(self, image):
            pixels = super().prepare(image)
            decoded[int(pixels[0, 0, 0])].set()
            return pixels

        def encode(self, images):
            if not self.batches:  # of images 0 to 2; the batch after the next begins with 6
                assert read[8].wait(30)
                assert decoded[5].wait(30)
            return super().encode(images)

    manifest = build(Watched(), tmp_path / "o", encoder=Waiting(), options=options(shard_size=10))
    assert manifest.records == 22


@pytest.mark.parametrize("workers", [1, 7])
def test_bytes_do_not_depend_on_workers(inputs, built, tmp_path, workers):
    build(open_source("webdataset", [inputs]), tmp_path / "o", encoder=Colours(), options=options(workers=workers))
    assert content(tmp_path / "o") == content(built[0])


def test_bytes_do_not_depend_on_shares_or_where_the_data_lie(inputs, built, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(inputs)
    for index in (2, 0, 1):
        share = options(share=Share(index, 3))
        done = build(open_source("webdataset", [moved]), tmp_path / "o", encoder=Colours(), options=share)
        assert (done is not None) == (index == 1)
    assert content(tmp_path / "o") == content(built[0])


class DiesAt(Colours):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def encode(self, images):
        if len(self.batches) == self.batch:
            raise KeyboardInterrupt
        return super().encode(images)


def test_repeatedly_interrupted_builds_give_the_same_bytes(inputs, built, tmp_path):
    source = open_source("webdataset", [inputs])
    for batch in (1, 0, 3, 2):
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "o", encoder=DiesAt(batch), options=options())
        with pytest.raises(UserError, match="unfinished build"):
            open_shards(tmp_path / "o")
    encoder = Colours()
    build(source, tmp_path / "o", encoder=encoder, options=options())
    assert content(tmp_path / "o") == content(built[0])
    assert len(encoder.batches) < len(built[1].batches)  # finished shards were not made again


SCRIPT = """
import sys, time
from seed_jax.data.build.build import build
from seed_jax.data.build.options import BuildOptions, SkipLimit
from seed_jax.data.sources import open_source
from tests.data.sources.samples import Colours

class Slow(Colours):
    def encode(self, images):
        time.sleep(0.02)
        return super().encode(images)

print("started", flush=True)
build(open_source("webdataset", [sys.argv[1]]), sys.argv[2], encoder=Slow(),
      options=BuildOptions(shard_size=5, workers=2, max_skipped=SkipLimit(number=1), progress=False))
"""


def start(inputs, out):
    """Start a build in another process; returns when it is about to begin."""
    command = [sys.executable, "-c", SCRIPT, str(inputs), str(out)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    return process


def test_builds_killed_at_random_moments_give_the_same_bytes(inputs, built, tmp_path):
    rng, left = random.Random(0), KILLS
    for out in (tmp_path / str(number) for number in itertools.count()):
        while True:
            process = start(inputs, out)
            if left:
                time.sleep(rng.uniform(0, 0.12))
                process.kill()
            if process.wait() == 0:  # it may have been faster
                break
            assert process.returncode == -signal.SIGKILL
            left -= 1
        assert content(out) == content(built[0])
        if not left:
            break


def test_two_builds_into_one_directory(inputs, tmp_path):
    process = start(inputs, tmp_path / "o")
    while not (tmp_path / "o/build/plan.json").exists():
        time.sleep(0.001)
    with pytest.raises(UserError, match=rf"o is being written by process {process.pid} on .*: wait for it"):
        build(open_source("webdataset", [inputs]), tmp_path / "o", encoder=Colours(), options=options())
    assert process.wait() == 0


def test_a_whole_build_beside_shares_is_refused(inputs, built, tmp_path):
    out, held = tmp_path / "o", []

    class Watching(Colours):
        def encode(self, images):
            if not held:
                held.append(True)
                for share in (Share(), Share(0, 2)):
                    with pytest.raises(UserError, match="o is being written by"):
                        build(open_source("webdataset", [inputs]), out, encoder=Colours(), options=options(share=share))
                build(open_source("webdataset", [inputs]), out, encoder=Colours(), options=options(share=Share(1, 2)))
            return super().encode(images)

    build(open_source("webdataset", [inputs]), out, encoder=Watching(), options=options(share=Share(0, 2)))
    assert held
    assert content(out) == content(built[0])


def test_a_finished_build_is_left_alone(inputs, built):
    before, encoder = content(built[0]), Colours()
    assert build(open_source("webdataset", [inputs]), built[0], encoder=encoder, options=options()).records == 22
    assert encoder.batches == []
    assert content(built[0]) == before


def test_other_settings_or_inputs_are_refused(inputs, built, tmp_path):
    source, out = open_source("webdataset", [inputs]), built[0]
    with pytest.raises(UserError, match="shard_size was 5, is 6"):
        build(source, out, encoder=Colours(), options=options(shard_size=6))
    with pytest.raises(UserError, match=r"batch_size was 3, is 0; tokenizer was c+, is None"):
        build(source, out, options=options())
    with pytest.raises(UserError, match=r"input files changed: b.tar\)"):
        build(open_source("webdataset", [inputs / "a.tar"]), out, encoder=Colours(), options=options())
    lower = Colours()
    lower.precision = "bfloat16"
    with pytest.raises(UserError, match=r"precision was float32, is bfloat16\)"):
        build(source, out, encoder=lower, options=options())
    assert open_shards(out).manifest.precision == "float32"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a shard directory"):
        build(source, tmp_path, options=options())


def test_settings_may_change_while_nothing_is_finished(inputs, tmp_path):
    source = open_source("webdataset", [inputs])
    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "o", encoder=DiesAt(0), options=options())
    assert build(source, tmp_path / "o", encoder=Colours(), options=options(shard_size=50)).records == 22
    assert [path.name for path in (tmp_path / "o").glob("*.array_record")] == ["shard-000000.array_record"]


def test_a_damaged_shard_or_report_is_made_again(inputs, built, tmp_path):
    source = open_source("webdataset", [inputs])
    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "o", encoder=DiesAt(4), options=options())
    (tmp_path / "o/shard-000000.array_record").write_bytes(b"")
    (tmp_path / "o/build/shard-000001.json").write_text('{"file"')
    build(source, tmp_path / "o", encoder=Colours(), options=options())
    assert content(tmp_path / "o") == content(built[0])


def test_too_many_bad_records_stop_the_build_and_a_larger_limit_goes_on(inputs, built, tmp_path):
    source, out = open_source("webdataset", [inputs]), tmp_path / "o"
    with pytest.raises(
        UserError, match=r"1 of 23 input samples are unusable, more than --max-bad .*1 times: unreadable image"
    ):
        build(source, out, encoder=Colours(), options=options(max_skipped=SkipLimit.parse("1%")))
    assert "a.tar/007" in (out / "bad.jsonl").read_text()
    assert not (out / "manifest.json").exists()
    build(source, out, encoder=Colours(), options=options(max_skipped=SkipLimit.parse("5%")))
    assert content(out) == content(built[0])


def test_without_a_tokenizer_the_images_themselves_are_stored(tmp_path):
    lines = [{"image": f"{number}.png", "caption": [f"{number}", "again"]} for number in range(3)]
    lines += [{"image": "gone.png", "caption": "x"}, {"image": "empty.png", "caption": "x"}]
    lines += [{"image": "0.png", "caption": " "}, {"image": "0.png", "caption": "\u0000"}]
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "empty.png").touch()
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source("folder", [tmp_path])
    manifest = build(source, tmp_path / "o", options=options(max_skipped=SkipLimit(number=4)))
    assert manifest.items == {"images": 3, "texts": 6}
    expected = {"control characters in text": 1, "empty text": 1, "missing image": 1, "unreadable image": 1}
    assert manifest.dropped == expected
    assert manifest.tokenizer is None
    assert [record.items for record in open_shards(tmp_path / "o")] == [(png(n), str(n), "again") for n in range(3)]


def test_a_decompression_bomb_is_a_counted_bad_record(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number, (200, 200) if number == 1 else (6, 5)))
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"image": f"{n}.png", "caption": "x"}) for n in range(3)))
    monkeypatch.setattr("seed_jax.images.MAX_PIXELS", 200 * 200 - 1)
    source = open_source("folder", [tmp_path / "c.jsonl"])
    manifest = build(source, tmp_path / "o", encoder=Colours(), options=options())
    assert manifest.dropped == {"unreadable image": 1}
    assert "200 x 200 pixels" in (tmp_path / "o/bad.jsonl").read_text()


def test_special_and_oversized_files_are_counted_bad_records(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(png(0))
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to("/dev/zero")
    (tmp_path / "3.png").write_bytes(png(3) + bytes(2000))
    (tmp_path / "t").mkdir()
    tar(tmp_path / "t/a.tar", {"4.jpg": png(4), "4.txt": b"x", "5.jpg": png(5) + bytes(2000), "5.txt": b"x"})
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"image": f"{n}.png", "caption": "x"}) for n in range(4)))
    monkeypatch.setattr("seed_jax.images.MAX_FILE_BYTES", 1000)
    limit = options(max_skipped=SkipLimit(number=3))
    folder = build(open_source("folder", [tmp_path / "c.jsonl"]), tmp_path / "o", encoder=Colours(), options=limit)
    assert (folder.records, sum(folder.dropped.values())) == (1, 3)
    tars = build(open_source("webdataset", [tmp_path / "t"]), tmp_path / "p", encoder=Colours(), options=limit)
    assert (tars.records, tars.dropped) == (1, {"unreadable image": 1})


def test_a_tokenizer_with_other_codes_is_refused(inputs, tmp_path):
    class Short(Colours):
        def encode(self, images):
            return np.zeros((len(images), 16), np.int32)

    with pytest.raises(UserError, match=r"shape \(3, 16\), expected integers of shape \(3, 32\)"):
        build(open_source("webdataset", [inputs]), tmp_path / "o", encoder=Short(), options=options())


def test_an_input_without_samples(tmp_path):
    tar(tmp_path / "a.tar", {"README": b"nothing"})
    with pytest.raises(UserError, match=r"a.tar contains no samples"):
        build(open_source("webdataset", [tmp_path]), tmp_path / "o", options=options())


def test_an_input_that_changes_during_the_build(inputs, tmp_path):
    source = open_source("webdataset", [inputs / "a.tar"])

    class Growing:
        kind, files, options = source.kind, source.files, source.options
        read = staticmethod(source.read)

        def count(self, file):
            return source.count(file) + 1

    with pytest.raises(UserError, match=r"a.tar changed during the build"):
        build(Growing(), tmp_path / "o", options=options())


@pytest.mark.parametrize(("text", "allowed"), [("1%", 10), ("0.5", 500), ("25", 25), ("0", 0), ("2.5%", 25)])
def test_bad_limits(text, allowed):
    assert SkipLimit.parse(text).allowed(1000) == allowed


@pytest.mark.parametrize("text", ["", "-1", "200%", "many", "1.5", "nan"])
def test_impossible_bad_limits(text):
    with pytest.raises(UserError, match="is not a limit: expected"):
        SkipLimit.parse(text)


def test_impossible_settings():
    with pytest.raises(UserError, match="Share 4 of 4 does not exist"):
        Share(4, 4)
    with pytest.raises(UserError, match="Shard size 0"):
        dataclasses.replace(options(), shard_size=0)
