"""What the tests of sources share: small images, tars, an encoder that can be checked, and the way to samples."""

import functools
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax.data import templates
from seed_jax.data.batches.packing import RenderedSample
from seed_jax.data.build.build import build
from seed_jax.data.build.options import BuildOptions, SkipLimit
from seed_jax.data.shards.records import Record
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import SkippedSample, Source
from seed_jax.data.templates.renderer import Renderer
from seed_jax.data.text.vocabulary import Vocabulary
from tests.support import golden


class Colours:
    """A fake tokenizer: the codes are the image's first pixel and its place in the batch."""

    fingerprint = "c" * 64
    precision = "float32"
    preprocessing = {"size": 4}  # noqa: RUF012
    batch_size = 3

    def __init__(self):
        self.batches = []

    def prepare(self, image):
        return np.asarray(image.resize((4, 4)))

    def encode(self, images):
        self.batches.append(len(images))
        codes = np.zeros((len(images), 32), np.int32)
        codes[:, :3] = [image[0, 0] for image in images]
        codes[:, 3] = range(len(images))
        return codes


class Reds(Colours):
    """All codes of an image are half its red, so that it can be recognized in a vocabulary of 128 codes."""

    def encode(self, images):
        return np.repeat(np.array([[image[0, 0, 0] // 2] for image in images]), 32, 1)


def png(number: int, size: tuple[int, int] = (6, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number, number // 2, 255 - number)).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, names: dict[str, int]) -> None:
    """Write name -> red into files."""
    for name, red in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(red))


def tar(path: Path, members: dict[str, bytes], mode: str = "w", *, extra=()) -> Path:
    """Write a tar of name -> bytes; `extra` holds TarInfos without content."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path


def all_samples(source: Source) -> list[Any]:
    """Read everything at once, and in every split into two, which must give the same samples."""
    found = []
    for file in source.files:
        count = source.count(file)
        whole = list(source.read(file, 0, count))
        assert len(whole) == count
        for middle in range(count):
            split = [*source.read(file, 0, middle), *source.read(file, middle, count)]
            assert [(sample.id, type(sample)) for sample in split] == [(sample.id, type(sample)) for sample in whole]
        found += whole
    return found


def reasons(samples: list[Any]) -> list[str | None]:
    return [sample.reason if isinstance(sample, SkippedSample) else None for sample in samples]


def records(source: Source, out: Path, **options) -> list[Record]:
    """Build shards whose images have half their red as codes, and return their records."""
    all_samples(source)
    options = {"max_skipped": SkipLimit(fraction=1.0), "progress": False, "workers": 2, **options}
    build(source, out, encoder=Reds(), options=BuildOptions(**options))
    return list(open_shards(out, verify=True))


def shown(record: Record) -> list[str | int]:
    """Return the items of a record, an image as its red."""
    return [2 * int(item[0]) if isinstance(item, np.ndarray) else item for item in record.items]


@functools.lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def rendered(record: Record, task: str, **params) -> RenderedSample:
    """Render a record; fails where the task cannot read it."""
    (sample,) = Renderer(templates.make_template(task, params, vocabulary()))(record, np.random.default_rng(0))
    assert sample.kept, sample.reason
    return sample
