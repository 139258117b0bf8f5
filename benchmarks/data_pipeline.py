"""Speed and memory of the data pipeline alone, per core: packed tokens, and pictures decoded and resized.

    python benchmarks/data_pipeline.py                     # all parts, about two minutes
    python benchmarks/data_pipeline.py tokens              # pre-tokenised shards to packed batches
    python benchmarks/data_pipeline.py pictures            # against a plain Pillow loop and PyTorch's DataLoader
    python benchmarks/data_pipeline.py memory --minutes 10 # resident memory while batches are made

Rates are given by the wall clock and by the processor time that was used; on a machine with other work the latter is
the rate of a free core. Data are synthetic: captions of common lengths over random codes, JPEGs of 640 x 480.
"""

import argparse
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the mixtures are no part of the package

PARTS = ("tokens", "pictures", "memory")
WORDS = """a an the on in of with and near under dog cat man woman child street beach car red blue green old small
large photograph painting river house tree grass sky table coffee window standing sitting running city night
morning""".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.5, help="of the part `memory` (default %(default)s)")
    parser.add_argument("--vocabulary", help="folder of a real tokenizer; default: a small one trained on the spot")
    parser.add_argument("--records", type=int, default=3000, help="of each data set (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the resized pictures (default %(default)s)")
    args = parser.parse_args()
    if args.part is None:
        for part in PARTS:
            subprocess.run([sys.executable, __file__, part, *sys.argv[1:]], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = {"tokens": tokens, "pictures": pictures, "memory": memory}[args.part](args, Path(folder))
    print(json.dumps({"part": args.part, "cores": os.cpu_count(), **result}, indent=1))


def tokens(args: argparse.Namespace, folder: Path) -> dict:
    """Measure packed tokens for captions alone, and for the official pre-training mixture."""
    from seed_jax.data.batches.packing import packing_stats

    results = {}
    for name, parts in _mixtures(args, folder).items():
        batches = _batches(parts)
        for _ in range(4):
            next(batches)
        useful, samples, filled = 0, 0, []

        def step(batches: Iterator = batches, filled: list = filled) -> int:
            stats = packing_stats(next(batches))
            filled.append(stats)
            return stats.tokens

        useful, wall, used = _measured(step, args.seconds)
        samples = sum(stats.samples for stats in filled)
        results[name] = {
            "tokens_per_second": round(useful / wall),
            "tokens_per_core_second": round(useful / used),
            "samples_per_core_second": round(samples / used),
            "tokens_per_sample": round(useful / samples, 1),
            "useful_share": round(sum(stats.useful_share for stats in filled) / len(filled), 4),
            "useful_share_padded_as_the_original": round(_padded_share(parts), 4),
        }
    return results


def _padded_share(parts: list) -> float:
    """Return the share of useful positions if every sample were padded to its part's `max_length`."""
    from seed_jax.data.batches.record_stream import open_all
    from seed_jax.data.inspect.statistics import measure, useful_shares

    opened = open_all([part.directory for part in parts])
    measured = [measure(part, shards, 500, 8192) for part, shards in zip(parts, opened, strict=True)]
    return useful_shares(parts, measured, 2048).padded


def pictures(args: argparse.Namespace, folder: Path) -> dict:
    """Measure decoding and resizing: here, in a plain Pillow loop, and in PyTorch's DataLoader with one worker."""
    from PIL import Image

    from seed_jax import images

    files = _jpegs(64)
    turn = iter(range(10**9))

    def ours() -> int:
        images.resize(images.load(files[next(turn) % len(files)]), args.size, "bicubic")
        return 1

    def plain() -> int:
        image = Image.open(io.BytesIO(files[next(turn) % len(files)])).convert("RGB")
        np.asarray(image.resize((args.size, args.size), Image.Resampling.BICUBIC))
        return 1

    results = {}
    for name, work in (("here", ours), ("plain Pillow", plain)):
        count, wall, used = _measured(work, args.seconds)
        results[name] = {"pictures_per_second": round(count / wall), "pictures_per_core_second": round(count / used)}
    results |= _build_threads(args, folder, files)
    results |= _torch_loader(args, files)
    return results


def _build_threads(args: argparse.Namespace, folder: Path, files: list[bytes]) -> dict:
    """Measure what `seed-jax data build` does with pictures before the device: reading tars, threads, batches."""
    import tarfile

    from seed_jax.data.build.build import build
    from seed_jax.data.build.settings import Settings
    from seed_jax.data.sources import open_source

    class Nothing:
        """Takes no time for codes, so that only the pictures are measured."""

        fingerprint, preprocessing, batch_size = "0" * 32, {}, 64

        def prepare(self, image):
            from seed_jax import images

            return images.resize(image, args.size, "bicubic")

        def encode(self, pictures):
            return np.zeros((len(pictures), 32), np.int32)

    count = 2000
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number in range(count):
            for kind, content in (("jpg", files[number % len(files)]), ("txt", b"a dog")):
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    results = {}
    for workers in (1, os.cpu_count()):
        settings = Settings(workers=workers, progress=False)
        wall, used = time.perf_counter(), time.process_time()
        build(
            open_source("webdataset", [folder / "0.tar"]),
            folder / f"out{workers}",
            encoder=Nothing(),
            settings=settings,
        )
        wall, used = time.perf_counter() - wall, time.process_time() - used
        results[f"seed-jax data build, {workers} threads"] = {
            "pictures_per_second": round(count / wall),
            "pictures_per_core_second": round(count / used),
        }
    return results


def _torch_loader(args: argparse.Namespace, files: list[bytes]) -> dict:
    """Measure PyTorch's DataLoader on the same work; its workers' processor time is that of child processes."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return {"torch DataLoader": "PyTorch is not installed"}
    results = {}
    for workers in (1, os.cpu_count()):
        loader = DataLoader(_TorchPictures(files, args.size), batch_size=64, num_workers=workers)
        wall, used = time.perf_counter(), time.process_time() + _of_children()
        count = sum(len(batch) for batch in loader)
        del loader
        gc.collect()
        wall, used = time.perf_counter() - wall, time.process_time() + _of_children() - used
        results[f"torch DataLoader, {workers} workers"] = {
            "pictures_per_second": round(count / wall),
            "pictures_per_core_second": round(count / used),
        }
    return results


class _TorchPictures:
    """Decode and resize as a PyTorch data set would, without torchvision."""

    def __init__(self, files: list[bytes], size: int, count: int = 3000):
        self.files, self.size, self.count = files, size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        import torch
        from PIL import Image

        image = Image.open(io.BytesIO(self.files[index % len(self.files)])).convert("RGB")
        pixels = np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC))
        return torch.from_numpy(np.array(pixels))


def memory(args: argparse.Namespace, folder: Path) -> dict:
    """Make batches for some minutes, behind the prefetching thread, and note the resident memory."""
    import psutil

    from seed_jax.data.batches.packed import packed_batches

    batches = iter(packed_batches(_mixtures(args, folder)["official mixture"], rows=64, length=2048, seed=0))
    process, found = psutil.Process(), []
    end = time.monotonic() + 60 * args.minutes
    made, noted = 0, 0.0
    while time.monotonic() < end:
        next(batches)
        made += 1
        if time.monotonic() - noted > 60 * args.minutes / 40:
            noted = time.monotonic()
            found.append(round(process.memory_info().rss / 2**20, 1))
    tenth = max(len(found) // 10, 1)
    return {
        "minutes": args.minutes,
        "batches_of_64_rows": made,
        "mib_after_a_tenth": found[tenth],
        "mib_at_the_end": found[-1],
        "mib_most": max(found),
        "mib_more_each_minute": round(_slope(found[tenth:], args.minutes / len(found)), 2),
        "mib": found,
    }


def _slope(values: list[float], step: float) -> float:
    """Return by how much values grow in a unit of time, of which one step lies between two of them."""
    return float(np.polyfit(step * np.arange(len(values)), values, 1)[0]) if len(values) > 1 else float("nan")


def _measured(work: Callable[[], int], seconds: float) -> tuple[int, float, float]:
    """Return how much was done in so many seconds, the seconds, and the processor time used."""
    total, wall, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        total += work()
    return total, time.perf_counter() - wall, time.process_time() - used


def _of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _batches(parts: list) -> Iterator:
    from seed_jax.data.batches.packed import packed_batches

    return iter(packed_batches(parts, rows=16, length=2048, seed=0, prefetch=0))


def _mixtures(args: argparse.Namespace, folder: Path) -> dict:
    """Return captions alone, and the six official parts, over synthetic shards."""
    from configs.data import pretrain
    from seed_jax.data.batches.mixture_config import make_parts
    from seed_jax.data.text.vocabulary import Vocabulary, train_small

    rng = np.random.default_rng(0)
    if args.vocabulary:
        vocabulary = Vocabulary.load(args.vocabulary)
    else:
        train_small([_words(rng, 2000) for _ in range(20)], folder / "vocabulary", vocab_size=600, num_codes=8192)
        vocabulary = Vocabulary.load(folder / "vocabulary")
    described = [{**part, "cycles": None} for part in pretrain.parts(str(folder))]
    for part in described:
        paths = part["path"] if isinstance(part["path"], list) else [part["path"]]
        for path in paths:
            _write(Path(path), part["task"], args.records, rng)
    captions = [part for part in described if part["task"] == "pretrain.image_text_pair"]
    return {"captions": make_parts(captions, vocabulary), "official mixture": make_parts(described, vocabulary)}


def _write(folder: Path, task: str, count: int, rng: np.random.Generator) -> None:
    from seed_jax.data.shards import manifest, records, shards
    from seed_jax.data.shards.records import Record

    def record(number: int) -> bytes:
        image = [rng.integers(0, 8192, 32).astype(np.uint16) for _ in range(6)]
        items = {
            "pretrain.image_text_pair": (image[0], _words(rng, int(rng.integers(6, 22)))),
            "pretrain.video_caption": (*image[:4], _words(rng, int(rng.integers(6, 30)))),
            "pretrain.text": (_words(rng, int(rng.lognormal(6, 0.8))),),
            "pretrain.interleaved": tuple(
                each for picture in image for each in (picture, _words(rng, int(rng.integers(8, 60))))
            ),
        }[task]
        return records.encode(Record(f"{task}/{number}", "benchmark", items, {"width": 640, "height": 480}))

    folder.mkdir(parents=True, exist_ok=True)
    file = shards.write_shard(folder / shards.shard_name(0), map(record, range(count)))
    manifest.save(folder, manifest.Manifest("benchmark", (file,), tokenizer="0" * 32))


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS, max(count, 1)))


def _jpegs(count: int) -> list[bytes]:
    """Return pictures with as much detail as photographs have: about 80 KB each at 640 x 480."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        fine = rng.normal(0, 6, (480, 640, 3))
        file = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        files.append(file.getvalue())
    return files


if __name__ == "__main__":
    main()
