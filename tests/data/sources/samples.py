"""What the tests of sources share: small pictures, tars, an encoder that can be checked, and the way to samples."""

import functools
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax.data import templates
from seed_jax.data.batches.packing import Sample
from seed_jax.data.build.build import build
from seed_jax.data.build.settings import BadLimit, Settings
from seed_jax.data.shards.records import Record
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import Bad, Source
from seed_jax.data.templates.renderer import Renderer
from seed_jax.data.text.vocabulary import Vocabulary
from tests.support import golden


class Colours:
    """Stands for a tokenizer: the codes are the picture's first pixel and its place in the batch."""

    fingerprint = "c" * 64
    preprocessing = {"size": 4}  # noqa: RUF012
    batch_size = 3

    def __init__(self):
        self.batches = []

    def prepare(self, image):
        return np.asarray(image.resize((4, 4)))

    def encode(self, pictures):
        self.batches.append(len(pictures))
        codes = np.zeros((len(pictures), 32), np.int32)
        codes[:, :3] = [picture[0, 0] for picture in pictures]
        codes[:, 3] = range(len(pictures))
        return codes


class Reds(Colours):
    """All codes of a picture are half its red, so that it can be recognised in a vocabulary of 128 codes."""

    def encode(self, pictures):
        return np.repeat(np.array([[picture[0, 0, 0] // 2] for picture in pictures]), 32, 1)


def png(number: int, size: tuple[int, int] = (6, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number, number // 2, 255 - number)).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path, names: dict[str, int]) -> None:
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


def all_units(source: Source) -> list[Any]:
    """Read everything at once, and in every split into two, which must give the same units."""
    found = []
    for file in source.files:
        count = source.count(file)
        whole = list(source.read(file, 0, count))
        assert len(whole) == count
        for middle in range(count):
            split = [*source.read(file, 0, middle), *source.read(file, middle, count)]
            assert [(unit.id, type(unit)) for unit in split] == [(unit.id, type(unit)) for unit in whole]
        found += whole
    return found


def reasons(units: list[Any]) -> list[str | None]:
    return [unit.reason if isinstance(unit, Bad) else None for unit in units]


def records(source: Source, out: Path, **settings) -> list[Record]:
    """Build shards whose pictures have half their red as codes, and return their records."""
    all_units(source)
    settings = {"max_bad": BadLimit(share=1.0), "progress": False, "workers": 2, **settings}
    build(source, out, encoder=Reds(), settings=Settings(**settings))
    return list(open_shards(out, verify=True))


def shown(record: Record) -> list[str | int]:
    """Return the items of a record, a picture as its red."""
    return [2 * int(item[0]) if isinstance(item, np.ndarray) else item for item in record.items]


@functools.lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def rendered(record: Record, task: str, **params) -> Sample:
    """Render a record; fails where the task cannot read it."""
    (sample,) = Renderer(templates.make(task, params, vocabulary()))(record, np.random.default_rng(0))
    assert sample.kept, sample.reason
    return sample
