"""Batched image tokenization with prefetching: images to codes, and codes to generation embeddings."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8
from PIL import Image

from seed_jax import images
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.errors import UserError
from seed_jax.inference import weight_loading
from seed_jax.inference.programs import shared
from seed_jax.models.tokenizer.seed_tokenizer import (
    EncoderOutput,
    SeedTokenizer,
    SeedTokenizerConfig,
    abstract_params,
)
from seed_jax.precision import Precision
from seed_jax.typing import ParamPath, Tree

PRECISIONS = ("float32", "bfloat16_3x", "bfloat16")  # of ViT and Q-Former, most exact first
_PREFETCHED_BATCHES = 2  # batches that are decoded on the host while one is on the device
# ViT-g on a CPU takes 75 ms per block and image in groups of 4, 85 in groups of 1 or 8, 105 in groups of 16: the
# activations of 4 images fit into the caches, and the weights are read often enough for their bandwidth not to matter
# (AMD EPYC with AVX-512, one core, float32).
CPU_GROUP_SIZE = 4


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image is resized to a square; the defaults are those of the original's training data.

    Attributes:
        interpolation: "bilinear", "bicubic", or None for the model's own: bicubic for SEED-1, else bilinear.
        keep_ratio: crop the centre instead of changing the aspect ratio.
    """

    interpolation: str | None = None
    keep_ratio: bool = False


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """The result for one image of a stream: its codes, or the reason why there are none."""

    key: Hashable
    codes: Int[np.ndarray, " Q"] | None
    error: str | None = None


def default_precision(platform: str) -> str:
    """Return the precision in which codes that are stored are computed: a CPU gains nothing from lower ones."""
    return "float32" if platform == "cpu" else "bfloat16_3x"


class ImageTokenizer:
    """An image tokenizer with its weights on the device, compiled once for one batch size.

    Example:
        tokenizer = ImageTokenizer.load("models/seed_tokenizer")
        codes = tokenizer.encode(["cat.jpg"])  # int32 [1, 32]
        embeddings = tokenizer.embed_codes(codes)  # float32 [1, 1024], SEED-1's [1, 77, 768]: the decoder's condition

    Args:
        config: sizes of the model.
        params: parameters of a `SeedTokenizer`: nested dict of arrays or lazy arrays.
        precision: compute float32 by default, because codes are stored; "bfloat16_3x" and "bfloat16" are faster on
            accelerators and change codes that are near ties. Projection and distances are float32 in any case.
        preprocessing: how images are resized.
        batch_size: images per step; with a `mesh`, rounded up to a multiple of its devices.
        quantize: "int8" or "int4" quantizes the ViT's kernels, 85 % of the weights; changes codes that are near ties.
        mesh: shards every batch over all axes; the weights are replicated.

    Raises:
        UserError: an option is out of range, or the parameters do not fit the sizes.
    """

    def __init__(
        self,
        config: SeedTokenizerConfig,
        params: Tree,
        *,
        precision: Precision = Precision(),
        preprocessing: Preprocessing = Preprocessing(),
        batch_size: int = 16,
        quantize: str | None = None,
        mesh: Mesh | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"The batch size of the image tokenizer is {batch_size}, expected at least 1.")
        if preprocessing.interpolation is None:
            interpolation = "bicubic" if config.predicts_text else "bilinear"
            preprocessing = dataclasses.replace(preprocessing, interpolation=interpolation)
        if preprocessing.interpolation not in images.INTERPOLATIONS:
            known = ", ".join(images.INTERPOLATIONS)
            raise UserError(f"Unknown interpolation {preprocessing.interpolation!r}: expected one of {known}.")
        model_dir.check_tree(params, abstract_params(config), "the image tokenizer")
        self._num_devices = num_devices = 1 if mesh is None else mesh.size
        self.config = config
        self.precision = precision
        self.preprocessing = preprocessing
        self.batch_size = -(-batch_size // num_devices) * num_devices
        self._quantize = quantize
        self._batch_sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._stored_params = params
        self.params = self._load_params(params, mesh)
        on_cpu = mesh is None and jax.default_backend() == "cpu"
        self.encode_program, self._embed_program = _programs(config, precision, on_cpu)

    @classmethod
    def load(cls, directory: str | Path, **options) -> "ImageTokenizer":
        """Read a model directory or the newest checkpoint of a training workdir, tensor by tensor.

        Args:
            directory: model directory or workdir.
            options: keyword arguments of the class.
        """
        loaded = model_dir.open_lazily(directory, ModelKind.IMAGE_TOKENIZER)
        where = str(loaded.directory / model_dir.CONFIG)
        # A training workdir holds further collections (teachers, statistics) beside the parameters.
        params = loaded.params.get("params", loaded.params)
        return cls(SeedTokenizerConfig.from_dict(loaded.config.get("sizes", {}), where), params, **options)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return a hash of weights, sizes and preprocessing: equal fingerprints give equal codes up to rounding."""
        digest = hashlib.sha256()
        described: dict[str, Any] = {
            "sizes": self.config.to_dict(),
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }
        if self._quantize:
            described["quantize"] = self._quantize
        digest.update(json.dumps(described, sort_keys=True).encode())
        for name, leaf in sorted(flatten_dict(self._stored_params, sep="/").items()):
            values = np.ascontiguousarray(cast(Any, leaf))
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(values.view(np.uint8).data)
        return digest.hexdigest()[:32]

    def pixels(self, image: images.ImageInput) -> UInt8[np.ndarray, "S S 3"]:
        """Read an image (see `images.load`) and resize it to the input size of this tokenizer."""
        return images.resize(images.load(image), self.config.image_size, **dataclasses.asdict(self.preprocessing))

    def encode(self, batch: images.ImageInput | Sequence[images.ImageInput]) -> Int[np.ndarray, "N Q"]:
        """Return the codes of images.

        Args:
            batch: one image or several: paths, encoded bytes, binary files, Pillow images of any mode, or arrays (see
                `images.load`).

        Raises:
            UserError: an image is unreadable.
        """
        size = self.config.image_size
        pixels = np.array([self.pixels(image) for image in images.as_list(batch)], np.uint8)
        return self.encode_pixels(pixels.reshape(-1, size, size, 3))

    def encode_pixels(self, pixels: UInt8[np.ndarray, "N S S 3"]) -> Int[np.ndarray, "N Q"]:
        """Return the codes of resized images (see `pixels`)."""
        dispatched = [self.dispatch_pixels(batch) for batch in _batched(pixels, self.batch_size)]
        codes = [np.asarray(batch) for batch in dispatched]
        return np.concatenate([np.zeros((0, self.config.codes_per_image), np.int32), *codes])[: len(pixels)]

    def dispatch_pixels(self, pixels: Sequence[np.ndarray] | np.ndarray, batch_size: int | None = None) -> jax.Array:
        """Start encoding up to `batch_size` resized images and return at once.

        Args:
            pixels: N images, uint8 [S, S, 3].
            batch_size: by default that of this tokenizer; every other one compiles a program of its own.

        Returns:
            Codes, int32 [batch_size, Q], that are still being computed; the first N entries are valid.
        """
        return self.encode_program(self.params, self.put_batch(pixels, batch_size))

    def encode_stream(
        self, items: Iterable[tuple[Hashable, str | Path | bytes]], *, workers: int = 4
    ) -> Iterator[EncodedImage]:
        """Encode a stream of images in order; an unreadable image yields its error instead of codes.

        Args:
            items: (key, path or encoded bytes); error messages call the image by its key.
            workers: threads that decode ahead.
        """
        previous: tuple[list[EncodedImage], jax.Array] | None = None
        blank = np.zeros((self.config.image_size, self.config.image_size, 3), np.uint8)
        for group in _batched(self._decode_ahead(items, workers), self.batch_size):
            codes = self.dispatch_pixels([blank if pixels is None else pixels for _, pixels in group])
            # The codes of a batch are fetched after the next batch has been dispatched.
            if previous is not None:
                yield from _with_codes(*previous)
            previous = ([encoded for encoded, _ in group], codes)
        if previous is not None:
            yield from _with_codes(*previous)

    def embed_codes(self, codes: Int[np.ndarray, "N Q"]) -> Float[np.ndarray, "N ..."]:
        """Return the generation embeddings that the decoder draws from, each of `config.embedding_shape`.

        Raises:
            UserError: an image has another number of codes than this tokenizer's, or a code is out of range.
        """
        codes = np.asarray(codes, np.int32)
        self.check_codes(codes)
        parts = [
            np.asarray(self._embed_program(self.params, self.put_batch(batch)))
            for batch in _batched(codes, self.batch_size)
        ]
        return np.concatenate([np.zeros((0, *self.config.embedding_shape), np.float32), *parts])[: len(codes)]

    def check_codes(self, codes: Int[np.ndarray, "N ..."]) -> None:
        """Raise UserError if images have another number of codes than this tokenizer's, or codes out of range."""
        expected, limit = self.config.codes_per_image, self.config.num_codes
        if codes.shape[1:] != (expected,) or (codes.size and not 0 <= codes.min() <= codes.max() < limit):
            values = f", values {codes.min()} to {codes.max()}" if codes.size else ""
            raise UserError(
                f"Codes of images have the shape {codes.shape}{values}: expected {expected} codes from 0 to "
                f"{limit - 1} per image, as this image tokenizer makes them."
            )

    def put_batch(self, rows: Sequence[np.ndarray] | np.ndarray, batch_size: int | None = None) -> jax.Array:
        """Pad a batch with zeros to `batch_size` and transfer it to the device or devices."""
        batch = np.stack(cast(Sequence[np.ndarray], rows))
        size = self.batch_size if batch_size is None else -(-batch_size // self._num_devices) * self._num_devices
        padding = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        return jax.device_put(np.pad(batch, padding), self._batch_sharding)

    def _load_params(self, params: Tree, mesh: Mesh | None) -> Tree:
        replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())

        def put(path: ParamPath, leaf: Any) -> jax.Array:
            return jax.device_put(leaf, replicated)

        return weight_loading.load(
            params, lambda path: _kernel_dtype(path, self.precision), weight_loading.vit_schemes(self._quantize), put
        )

    def _decode_ahead(
        self, items: Iterable[tuple[Hashable, str | Path | bytes]], workers: int
    ) -> Iterator[tuple[EncodedImage, np.ndarray | None]]:
        def decode(key: Hashable, source: str | Path | bytes) -> tuple[EncodedImage, np.ndarray | None]:
            try:
                return EncodedImage(key, None), self.pixels(images.load(source, str(key)))
            except UserError as error:
                return EncodedImage(key, None, str(error)), None

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            submitted = (pool.submit(decode, *item) for item in items)
            queue = collections.deque(itertools.islice(submitted, _PREFETCHED_BATCHES * self.batch_size))
            while queue:
                yield queue.popleft().result()
                queue.extend(itertools.islice(submitted, 1))


def _with_codes(group: list[EncodedImage], codes: jax.Array) -> Iterator[EncodedImage]:
    for encoded, row in zip(group, np.asarray(codes), strict=False):
        yield encoded if encoded.error else dataclasses.replace(encoded, codes=row)


def _batched(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _kernel_dtype(path: ParamPath, precision: Precision) -> np.dtype | None:
    """Convert kernels to the compute dtype once instead of in every step; what the codes depend on stays float32."""
    return precision.compute_dtype if path[-1] == "kernel" and path[0] != "encode_task" else None


class BatchImageEncoder:
    """Adapts an `ImageTokenizer` to the `ImageEncoder` protocol of `data.build.encoding`."""

    def __init__(self, tokenizer: ImageTokenizer):
        self._tokenizer = tokenizer
        self.fingerprint = tokenizer.fingerprint
        self.precision = tokenizer.precision.compute
        self.batch_size = tokenizer.batch_size
        self.preprocessing: dict[str, Any] = {
            "image_size": tokenizer.config.image_size,
            **dataclasses.asdict(tokenizer.preprocessing),
        }

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize one image; may be called from several threads."""
        return self._tokenizer.pixels(image)

    def encode(self, images: np.ndarray) -> "PendingCodes":
        """Start encoding a batch and return at once."""
        return PendingCodes(self._tokenizer.dispatch_pixels(images), len(images))


class PendingCodes:
    """Codes that the device is computing; `np.asarray` waits for them."""

    def __init__(self, batch: jax.Array, count: int):
        self._batch = batch
        self._count = count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._batch, dtype)[: self._count]


@shared
def _programs(
    config: SeedTokenizerConfig, precision: Precision, in_groups: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the jitted functions from parameters and pixels to codes, and from parameters and codes to embeddings."""
    model = SeedTokenizer(config, precision)

    def encode(params: Tree, pixels: jax.Array) -> jax.Array:
        output = model.apply({"params": params}, images.normalize(pixels), method="encode")
        return cast(EncoderOutput, output).codes

    def embed(params: Tree, codes: jax.Array) -> jax.Array:
        return cast(jax.Array, model.apply({"params": params}, codes, method="embed_codes")).astype(np.float32)

    return jax.jit(map_in_groups(encode) if in_groups else encode), jax.jit(embed)


def map_in_groups(
    function: Callable[[Any, jax.Array], jax.Array], group_size: int = CPU_GROUP_SIZE
) -> Callable[[Any, jax.Array], jax.Array]:
    """Return `function(params, batch)` as a loop over groups of up to `group_size` entries, which divide the batch."""

    def run(params: Any, batch: jax.Array) -> jax.Array:
        size = max(n for n in range(1, group_size + 1) if len(batch) % n == 0)
        groups = batch.reshape(-1, size, *batch.shape[1:])
        results = jax.lax.map(lambda group: function(params, group), groups)
        return results.reshape(len(batch), *results.shape[2:])

    return run
