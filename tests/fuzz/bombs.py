"""Small files that claim, or expand to, far more than they hold; each is made in one process and read in another.

    python -m tests.fuzz.bombs make|read NAME FOLDER

`read` prints how many bytes of memory the reader took at its peak, and the error, if it raised one.
"""

import dataclasses
import gzip
import io
import json
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Bomb:
    """A hostile file.

    Attributes:
        make: writes the file.
        read: reads it; a UserError is right, too.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]


def _png(path: Path, width: int, height: int, color: int, bits: int, channels: int) -> None:
    """Write a black PNG row by row."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + -(-width * bits * channels // 8))
    body = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def _save(kind: str, mode: str, side: int) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (side, side)).save(path, kind)


def _read_image(path: Path) -> None:
    from seed_jax import images

    image = images.load(path)
    images.resize(image, 224, "bicubic")
    images.resize(image, 224, "bicubic", keep_ratio=True)


def _read_source(kind: str) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from seed_jax.data.sources import open_source

        source = open_source(kind, [path])
        for file in source.files:
            for _ in source.read(file, 0, min(20, source.count(file))):
                pass

    return read


def _parquet_dictionary(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.array([bytes(48 * 2**20)], pa.binary())
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), values)
    texts = pa.array(["x"] * 1000)
    pq.write_table(
        pa.table({"image": column, "text": texts}), path, compression="zstd", dictionary_pagesize_limit=2**30
    )


def _safetensors_entries(path: Path) -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": entry for number in range(10**6)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def _read_tensors(path: Path) -> None:
    from seed_jax.convert.tensors import open_tensors

    open_tensors(path)


def _statistics(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("mu.npy", "w") as file:
        file.write(_npy_header((10**8,)))
        for _ in range(100):
            file.write(bytes(8 * 10**6))


def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _read_statistics(path: Path) -> None:
    from seed_jax.evaluation.metrics.frechet import load_statistics

    load_statistics(path)


def _long_line(path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(b'{"text": "x", "y": [')
        for _ in range(100):
            file.write(b"[]," * 2**20)


def _list_of_lists(path: Path) -> None:
    path.write_bytes(b'{"kind": [' + b"[]," * (10 * 2**20) + b"[]]}")


def _read_json(path: Path) -> None:
    from seed_jax.files import read_json

    read_json(path)


def _tar_header(path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    with gzip.open(path, "wb", 1) as file:
        file.write(info.tobuf())
        for _ in range(1024):
            file.write(bytes(2**20))


def _tar_chain(path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    path.write_bytes(info.tobuf() * 5000 + bytes(1024))


def _tar_one_name(path: Path) -> None:
    """Write 60,000 images whose names agree up to the first dot, as the frames of a video do."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    content = file.getvalue()
    with tarfile.open(path, "w") as archive:
        for number in range(60_000):
            info = tarfile.TarInfo(f"video.{number:06d}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


BOMBS = {
    "wide.png": Bomb(lambda path: _png(path, 89_000_000, 1, 0, 1, 1), _read_image),
    "rgba.png": Bomb(lambda path: _png(path, 9400, 9400, 6, 8, 4), _read_image),
    "grey16.png": Bomb(lambda path: _png(path, 9400, 9400, 0, 16, 1), _read_image),
    "rgb.jpg": Bomb(_save("JPEG", "RGB", 9400), _read_image),
    "rgb.webp": Bomb(_save("WEBP", "RGB", 6600), _read_image),
    "float.tif": Bomb(_save("TIFF", "F", 7900), _read_image),
    "rgb.jp2": Bomb(_save("JPEG2000", "RGB", 5400), _read_image),
    "dictionary.parquet": Bomb(_parquet_dictionary, _read_source("parquet")),
    "entries.safetensors": Bomb(_safetensors_entries, _read_tensors),
    "zeros.npz": Bomb(_statistics, _read_statistics),
    "line.jsonl.gz": Bomb(_long_line, _read_source("text")),
    "lists.json": Bomb(_list_of_lists, _read_json),
    "header.tar.gz": Bomb(_tar_header, _read_source("webdataset")),
    "chain.tar": Bomb(_tar_chain, _read_source("webdataset")),
    "name.tar": Bomb(_tar_one_name, _read_source("webdataset")),
}


def main() -> None:
    """Make or read one file."""
    from seed_jax.errors import UserError

    action, name, folder = sys.argv[1:]
    bomb, path = BOMBS[name], Path(folder, name)
    if action == "make":
        bomb.make(path)
        return
    _warm_up()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = "read"
    try:
        bomb.read(path)
    except UserError as error:
        message = str(error)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([(usage.ru_maxrss - before) * 1024, usage.ru_utime + usage.ru_stime, message]))


def _warm_up() -> None:
    import seed_jax.convert.tensors
    import seed_jax.data.sources.parquet
    import seed_jax.evaluation.metrics.frechet  # noqa: F401


if __name__ == "__main__":
    main()
