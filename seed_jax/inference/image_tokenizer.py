"""Pictures to codes in batches, decoding ahead of the device; codes to generation embeddings."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8
from PIL import Image

from seed_jax import images
from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.inference import weight_loading
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig, abstract_params
from seed_jax.precision import Precision

KIND = "seed_tokenizer"  # of its model directory
_GROUPS_AHEAD = 2  # batches that are decoded while one is on the device


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a square; the defaults made the original's corpora."""

    interpolation: str = "bilinear"
    keep_ratio: bool = False


@dataclasses.dataclass(frozen=True)
class Coded:
    """What became of one picture of a stream: its codes, or why there are none."""

    key: Hashable
    codes: Int[np.ndarray, " Q"] | None
    error: str | None = None


class ImageTokenizer:
    """A tokenizer with its weights on the device, compiled once for batches of one size.

    Args:
        params: nested dict of arrays, lazy ones (`checkpoint.lazy`) too.
        precision: float32 compute by default, because codes are stored for ever; bfloat16 changes near ties.
        batch_size: pictures a step; with a `mesh`, rounded up to a multiple of its devices.
        quantize: "int8" or "int4" rounds the ViT's kernels, 85 % of the weights: near ties become other codes.
        mesh: cut every batch over all axes; the weights are copied to each device.
    """

    def __init__(
        self,
        config: SeedTokenizerConfig,
        params: dict[str, Any],
        *,
        precision: Precision = Precision(),
        preprocessing: Preprocessing = Preprocessing(),
        batch_size: int = 16,
        quantize: str | None = None,
        mesh: Mesh | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"The batch size of the image tokenizer must be at least 1, found {batch_size}.")
        if preprocessing.interpolation not in images.INTERPOLATIONS:
            known = ", ".join(images.INTERPOLATIONS)
            raise UserError(f"Unknown interpolation {preprocessing.interpolation!r}: expected one of {known}.")
        model_dir.check_tree(params, abstract_params(config), "the image tokenizer")
        devices = 1 if mesh is None else mesh.size
        self.config, self.precision, self.preprocessing, self._quantize = config, precision, preprocessing, quantize
        self.batch_size = -(-batch_size // devices) * devices
        self._cut = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._weights = params
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        choose = weight_loading.vit_schemes(quantize) if quantize else lambda path: None
        place = lambda path, leaf: jax.device_put(leaf, whole)  # noqa: E731
        self._params = weight_loading.load(params, lambda path: _dtype(path, precision), choose, place)
        model = SeedTokenizer(config, precision)

        def encode(params, pixels):
            return model.apply({"params": params}, images.normalize(pixels), method="encode").codes

        def embed(params, codes):
            return model.apply({"params": params}, codes, method="embed_codes").astype(np.float32)

        small = mesh is None and jax.default_backend() == "cpu"
        self._encode, self._embed = jax.jit(in_groups(encode) if small else encode), jax.jit(embed)

    @classmethod
    def load(cls, directory: str | Path, **options) -> "ImageTokenizer":
        """Read a model directory, tensor by tensor; `options` as for the class."""
        found = model_dir.open_lazily(directory, KIND)
        where = str(found.directory / model_dir.CONFIG)
        # A training workdir holds further collections (teachers, statistics) beside the parameters.
        params = found.params.get("params", found.params)
        return cls(SeedTokenizerConfig.from_dict(found.config.get("sizes", {}), where), params, **options)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return a hash of weights, sizes and preprocessing: equal fingerprints give equal codes up to rounding."""
        digest = hashlib.sha256()
        described = {"sizes": self.config.to_dict(), "preprocessing": dataclasses.asdict(self.preprocessing)}
        if self._quantize:
            described["quantize"] = self._quantize
        digest.update(json.dumps(described, sort_keys=True).encode())
        for name, leaf in sorted(flatten_dict(self._weights, sep="/").items()):
            values = np.ascontiguousarray(leaf)
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(values.view(np.uint8))
        return digest.hexdigest()[:32]

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "S S 3"]:
        """Resize a picture as this tokenizer wants it."""
        return images.resize(image, self.config.image_size, **dataclasses.asdict(self.preprocessing))

    def encode(self, pictures: Sequence[Image.Image]) -> Int[np.ndarray, "N Q"]:
        """Return the codes of pictures (`images.load`)."""
        size = self.config.image_size
        pixels = np.array([self.pixels(picture) for picture in pictures], np.uint8)
        return self.encode_pixels(pixels.reshape(-1, size, size, 3))

    def encode_pixels(self, pixels: UInt8[np.ndarray, "N S S 3"]) -> Int[np.ndarray, "N Q"]:
        """Return the codes of what `pixels` made."""
        batches = [self._start(batch) for batch in _batched(pixels, self.batch_size)]
        codes = [np.asarray(batch) for batch in batches]
        return np.concatenate([np.zeros((0, self.config.codes_per_image), np.int32), *codes])[: len(pixels)]

    def start_pixels(self, pixels: UInt8[np.ndarray, "N S S 3"]) -> jax.Array:
        """Give up to `batch_size` of what `pixels` made to the device; the first N rows of the result are the codes."""
        return self._start(pixels)

    def encode_stream(
        self, items: Iterable[tuple[Hashable, str | Path | bytes]], *, workers: int = 4
    ) -> Iterator[Coded]:
        """Encode pictures as they come, in order; an unreadable one comes back with its error instead of codes.

        Args:
            items: (key, path or encoded bytes); the key is what a message calls the picture.
            workers: threads that decode ahead.
        """
        before: tuple[list[Coded], jax.Array] | None = None
        for group in _batched(self._decode_ahead(items, workers), self.batch_size):
            blank = np.zeros((self.config.image_size, self.config.image_size, 3), np.uint8)
            started = self._start([blank if pixels is None else pixels for _, pixels in group])
            # The results of a batch are fetched after the next one has been given to the device.
            if before is not None:
                yield from _finish(*before)
            before = ([coded for coded, _ in group], started)
        if before is not None:
            yield from _finish(*before)

    def embed_codes(self, codes: Int[np.ndarray, "N Q"]) -> Float[np.ndarray, "N E"]:
        """Return the generation embeddings that the decoder draws from."""
        codes = np.asarray(codes, np.int32)
        expected, limit = self.config.codes_per_image, self.config.num_codes
        if codes.shape[1:] != (expected,) or (codes.size and not 0 <= codes.min() <= codes.max() < limit):
            raise UserError(
                f"Codes of a picture are {expected} numbers from 0 to {limit - 1}: found shape {codes.shape}"
                + (f", {codes.min()} to {codes.max()}." if codes.size else ".")
            )
        parts = [np.asarray(self._embed(self._params, self._place(part))) for part in _batched(codes, self.batch_size)]
        return np.concatenate([np.zeros((0, self.config.embedding_width), np.float32), *parts])[: len(codes)]

    def _start(self, pixels: Sequence[np.ndarray] | np.ndarray) -> jax.Array:
        return self._encode(self._params, self._place(pixels))

    def _place(self, rows: Sequence[np.ndarray] | np.ndarray) -> jax.Array:
        """Fill a batch up, so that one compiled program serves, and bring it to the device or devices."""
        batch = np.stack(rows)
        padding = [(0, self.batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        return jax.device_put(np.pad(batch, padding), self._cut)

    def _decode_ahead(self, items, workers: int) -> Iterator[tuple[Coded, np.ndarray | None]]:
        def decode(key, source):
            try:
                return Coded(key, None), self.pixels(images.load(source, str(key)))
            except UserError as error:
                return Coded(key, None, str(error)), None

        items = iter(items)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            submitted = (pool.submit(decode, *item) for item in items)
            waiting = collections.deque(itertools.islice(submitted, _GROUPS_AHEAD * self.batch_size))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(itertools.islice(submitted, 1))


def _finish(group: list[Coded], codes: jax.Array) -> Iterator[Coded]:
    for coded, row in zip(group, np.asarray(codes), strict=False):
        yield coded if coded.error else dataclasses.replace(coded, codes=row)


def _batched(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _dtype(path: tuple[str, ...], precision: Precision) -> np.dtype | None:
    """Return the format of a matrix on the device, rounded once instead of in every step; None: as stored.

    What the codes are chosen from stays float32.
    """
    return precision.compute_dtype if path[-1] == "kernel" and path[0] != "encode_task" else None


class PictureEncoder:
    """What a `data.encoding.Encoder` is: fingerprint, preprocessing, batch size; prepare one picture, encode many."""

    def __init__(self, tokenizer: ImageTokenizer):
        self.fingerprint, self.batch_size = tokenizer.fingerprint, tokenizer.batch_size
        size = {"image_size": tokenizer.config.image_size}
        self.preprocessing = size | dataclasses.asdict(tokenizer.preprocessing)
        self.prepare, self._start = tokenizer.pixels, tokenizer.start_pixels

    def encode(self, pictures: np.ndarray) -> "Codes":
        """Give a batch to the device and return at once."""
        return Codes(self._start(pictures), len(pictures))


class Codes:
    """Codes that the device is computing; `np.asarray` waits for them."""

    def __init__(self, batch: jax.Array, count: int):
        self._batch, self._count = batch, count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._batch, dtype)[: self._count]


# ViT-g on a CPU, a block and a picture: 75 ms in groups of 4, 85 of 1 or 8, 105 of 16. A group of 4 still lies in the
# caches, and is large enough for the weights' own traffic not to count (AMD EPYC with AVX-512, one core, float32).
ROWS = 4


def in_groups(function: Callable[[Any, jax.Array], jax.Array], rows: int = ROWS) -> Callable[..., jax.Array]:
    """Return `function(params, batch)` that runs over up to `rows` rows at a time, one program inside one loop."""

    def run(params: Any, batch: jax.Array) -> jax.Array:
        size = max(n for n in range(1, rows + 1) if len(batch) % n == 0)
        groups = batch.reshape(-1, size, *batch.shape[1:])
        found = jax.lax.map(lambda group: function(params, group), groups)
        return found.reshape(len(batch), *found.shape[2:])

    return run
