"""Throughput and memory of the data pipeline per core: packed tokens, and images decoded and resized.

    python benchmarks/data_pipeline.py                     # all benchmarks, about two minutes
    python benchmarks/data_pipeline.py tokens              # tokenized shards to packed batches
    python benchmarks/data_pipeline.py images              # against a plain Pillow loop and PyTorch's DataLoader
    python benchmarks/data_pipeline.py memory --minutes 10 # resident memory while batches are packed

Rates are per second of wall time and of CPU time; on a shared machine the latter is the rate of an idle core. The data
are synthetic: captions of common lengths with random codes, JPEG images of 640 x 480.
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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from seed_jax.data.batches.packing import PackedBatch, PackingStats
    from seed_jax.data.batches.record_stream import MixtureComponent

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the mixtures in configs/

BENCHMARKS = ("tokens", "images", "memory")
WORDS = """a an the on in of with and near under dog cat man woman child street beach car red blue green old small
large photograph painting river house tree grass sky table coffee window standing sitting running city night
morning""".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", nargs="?", choices=BENCHMARKS, help="default: all")
    parser.add_argument("--seconds", type=float, default=10, help="duration of each measurement (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.5, help="duration of `memory` (default: %(default)s)")
    parser.add_argument("--vocabulary", help="text tokenizer (default: train a small one)")
    parser.add_argument("--records", type=int, default=3000, help="records per dataset (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of resized images in pixels (default: %(default)s)")
    args = parser.parse_args()
    if args.benchmark is None:
        for benchmark in BENCHMARKS:
            subprocess.run([sys.executable, __file__, benchmark, *sys.argv[1:]], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = {"tokens": tokens, "images": decoded_images, "memory": memory}[args.benchmark](args, Path(folder))
    print(json.dumps({"benchmark": args.benchmark, "cores": os.cpu_count(), **result}, indent=1))


def tokens(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure packed tokens per second for captions alone and for the official pre-training mixture."""
    from seed_jax.data.batches.packing import packing_stats

    results = {}
    for name, components in _mixtures(args, folder).items():
        batches = _batches(components)
        for _ in range(4):
            next(batches)
        all_stats: list[PackingStats] = []

        def step(batches: "Iterator[PackedBatch]" = batches, all_stats: "list[PackingStats]" = all_stats) -> int:
            stats = packing_stats(next(batches))
            all_stats.append(stats)
            return stats.tokens

        num_tokens, wall, cpu = _measured(step, args.seconds)
        samples = sum(stats.samples for stats in all_stats)
        results[name] = {
            "tokens_per_second": round(num_tokens / wall),
            "tokens_per_core_second": round(num_tokens / cpu),
            "samples_per_core_second": round(samples / cpu),
            "tokens_per_sample": round(num_tokens / samples, 1),
            "token_utilization": round(sum(stats.efficiency for stats in all_stats) / len(all_stats), 4),
            "token_utilization_padded": round(_padded_utilization(components), 4),
        }
    return results


def _padded_utilization(components: "list[MixtureComponent]") -> float:
    """Return the token utilization if every sample were padded to the `max_length` of its component."""
    from seed_jax.data.batches.record_stream import open_mixture
    from seed_jax.data.inspect.statistics import measure, token_utilization

    opened = open_mixture([component.directory for component in components])
    stats = [measure(component, shards, 500, 8192) for component, shards in zip(components, opened, strict=True)]
    return token_utilization(components, stats, 2048).padded


def decoded_images(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure decoding and resizing: seed_jax, a plain Pillow loop, and PyTorch's DataLoader."""
    from PIL import Image

    from seed_jax import images

    files = _jpegs(64)
    numbers = iter(range(10**9))

    def with_seed_jax() -> int:
        images.resize(images.load(files[next(numbers) % len(files)]), args.size, "bicubic")
        return 1

    def with_pillow() -> int:
        image = Image.open(io.BytesIO(files[next(numbers) % len(files)])).convert("RGB")
        np.asarray(image.resize((args.size, args.size), Image.Resampling.BICUBIC))
        return 1

    results = {}
    for name, work in (("seed_jax", with_seed_jax), ("plain Pillow", with_pillow)):
        count, wall, cpu = _measured(work, args.seconds)
        results[name] = {"images_per_second": round(count / wall), "images_per_core_second": round(count / cpu)}
    results |= _build_threads(args, folder, files)
    results |= _torch_loader(args, files)
    return results


def _build_threads(args: argparse.Namespace, folder: Path, files: list[bytes]) -> dict[str, Any]:
    """Measure `seed-jax data build` without the encoder: reading tar files, decoding in threads, batching."""
    import tarfile

    from seed_jax.data.build.build import build
    from seed_jax.data.build.options import BuildOptions
    from seed_jax.data.sources import open_source

    class NoEncoder:
        """Returns zeros, so that only reading and decoding are measured."""

        fingerprint = "0" * 32
        precision = "float32"
        preprocessing: ClassVar[dict[str, Any]] = {}
        batch_size = 64

        def prepare(self, image):
            from seed_jax import images

            return images.resize(image, args.size, "bicubic")

        def encode(self, images):
            return np.zeros((len(images), 32), np.int32)

    count = 2000
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number in range(count):
            for kind, content in (("jpg", files[number % len(files)]), ("txt", b"a dog")):
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    results = {}
    for workers in (1, os.cpu_count()):
        options = BuildOptions(workers=workers, progress=False)
        wall = time.perf_counter()
        cpu = time.process_time()
        build(
            open_source("webdataset", [folder / "0.tar"]),
            folder / f"out{workers}",
            encoder=NoEncoder(),
            options=options,
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results[f"seed-jax data build, {workers} threads"] = {
            "images_per_second": round(count / wall),
            "images_per_core_second": round(count / cpu),
        }
    return results


def _torch_loader(args: argparse.Namespace, files: list[bytes]) -> dict[str, Any]:
    """Measure PyTorch's DataLoader on the same work; the CPU time of its workers is that of child processes."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return {"torch DataLoader": "PyTorch is not installed"}
    results = {}
    for workers in (1, os.cpu_count()):
        loader = DataLoader(_TorchImages(files, args.size), batch_size=64, num_workers=workers)
        wall = time.perf_counter()
        cpu = time.process_time() + _child_cpu_time()
        count = sum(len(batch) for batch in loader)
        del loader
        gc.collect()
        wall, cpu = time.perf_counter() - wall, time.process_time() + _child_cpu_time() - cpu
        results[f"torch DataLoader, {workers} workers"] = {
            "images_per_second": round(count / wall),
            "images_per_core_second": round(count / cpu),
        }
    return results


class _TorchImages:
    """A PyTorch dataset that decodes and resizes without torchvision."""

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


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Pack batches with prefetching and record the resident memory."""
    import psutil

    from seed_jax.data.batches.packed import packed_batches

    components = _mixtures(args, folder)["official mixture"]
    batches = iter(packed_batches(components, batch_size=64, sequence_length=2048, seed=0))
    process = psutil.Process()
    measured: list[float] = []
    end = time.monotonic() + 60 * args.minutes
    num_batches = 0
    last_measured = 0.0
    while time.monotonic() < end:
        next(batches)
        num_batches += 1
        if time.monotonic() - last_measured > 60 * args.minutes / 40:
            last_measured = time.monotonic()
            measured.append(round(process.memory_info().rss / 2**20, 1))
    tenth = max(len(measured) // 10, 1)
    return {
        "minutes": args.minutes,
        "batches_of_64_rows": num_batches,
        "mib_after_a_tenth": measured[tenth],
        "mib_at_the_end": measured[-1],
        "mib_most": max(measured),
        "mib_more_each_minute": round(_slope(measured[tenth:], args.minutes / len(measured)), 2),
        "mib": measured,
    }


def _slope(values: list[float], step: float) -> float:
    """Return the slope of equidistant values; `step` is their distance in time."""
    return float(np.polyfit(step * np.arange(len(values)), values, 1)[0]) if len(values) > 1 else float("nan")


def _measured(work: Callable[[], int], seconds: float) -> tuple[int, float, float]:
    """Repeat `work` for some seconds; return the sum of its results, the wall time and the CPU time."""
    total = 0
    wall = time.perf_counter()
    cpu = time.process_time()
    while time.perf_counter() - wall < seconds:
        total += work()
    return total, time.perf_counter() - wall, time.process_time() - cpu


def _child_cpu_time() -> float:
    """Return the CPU time of finished child processes in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def _batches(components: "list[MixtureComponent]") -> "Iterator[PackedBatch]":
    from seed_jax.data.batches.packed import packed_batches

    return iter(packed_batches(components, batch_size=16, sequence_length=2048, seed=0, prefetch=0))


def _mixtures(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return a mixture of captions alone and the official mixture, over synthetic shards."""
    from configs.data import pretrain
    from seed_jax.data.batches.mixture_config import make_mixture
    from seed_jax.data.text.vocabulary import Vocabulary, train_small

    rng = np.random.default_rng(0)
    if args.vocabulary:
        vocabulary = Vocabulary.load(args.vocabulary)
    else:
        train_small([_words(rng, 2000) for _ in range(20)], folder / "vocabulary", vocab_size=600, num_codes=8192)
        vocabulary = Vocabulary.load(folder / "vocabulary")
    entries = [{**entry, "cycles": None} for entry in pretrain.components(str(folder))]
    for entry in entries:
        paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        for path in paths:
            _write(Path(path), entry["task"], args.records, rng)
    captions = [entry for entry in entries if entry["task"] == "pretrain.image_text_pair"]
    return {"captions": make_mixture(captions, vocabulary), "official mixture": make_mixture(entries, vocabulary)}


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
                item for codes in image for item in (codes, _words(rng, int(rng.integers(8, 60))))
            ),
        }[task]
        return records.encode(Record(f"{task}/{number}", "benchmark", items, {"width": 640, "height": 480}))

    folder.mkdir(parents=True, exist_ok=True)
    file = shards.write_shard(folder / shards.shard_name(0), map(record, range(count)))
    manifest.save(folder, manifest.Manifest("benchmark", (file,), tokenizer="0" * 32))


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS, max(count, 1)))


def _jpegs(count: int) -> list[bytes]:
    """Return images with as much detail as photographs: about 80 KB each at 640 x 480."""
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
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
