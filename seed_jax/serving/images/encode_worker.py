"""Images to codes, in separate batches beside the language model."""

import concurrent.futures
from collections.abc import Sequence

import numpy as np

from seed_jax.images import ImageInput
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.serving.images.batch_worker import BATCH_SIZES, BatchWorker, Job, padded_batch_size


class EncodeJob(Job):
    """An image that is being encoded; its result is a tuple of codes."""

    def __init__(self, pixels: np.ndarray):
        super().__init__()
        self.pixels = pixels


class EncodeWorker(BatchWorker):
    """Encodes the images of all requests together.

    Example:
        worker = EncodeWorker(tokenizer)
        worker.start()
        codes = worker.encode(image).result()  # a tuple of 32 codes

    Args:
        tokenizer: the image tokenizer.
        max_batch: images at a time: 1, 2, 4 or 8.
        max_queued: waiting images; more raise `QueueFullError`.
    """

    def __init__(self, tokenizer: ImageTokenizer, *, max_batch: int = 8, max_queued: int = 256):
        super().__init__("encode images", max_batch, max_queued)
        self._tokenizer = tokenizer

    def compile(self) -> None:
        """Compile the programs of all batch sizes, so that no request waits for it."""
        size = self._tokenizer.config.image_size
        for count in (count for count in BATCH_SIZES if count <= self._max_batch):
            np.asarray(self._tokenizer.dispatch_pixels(np.zeros((count, size, size, 3), np.uint8), count))

    def encode(self, image: ImageInput) -> "concurrent.futures.Future[tuple[int, ...]]":
        """Queue an image; reading and resizing it is done in the calling thread.

        Raises:
            UserError: the image is unreadable.
            QueueFullError: too many images are waiting.
            EngineClosedError: the worker does not run.
        """
        job = EncodeJob(self._tokenizer.pixels(image))
        self.enqueue(job)
        return job.future

    def process(self, jobs: Sequence[Job]) -> None:
        encoding = [job for job in jobs if isinstance(job, EncodeJob)]
        pixels = [job.pixels for job in encoding]
        codes = np.asarray(self._tokenizer.dispatch_pixels(pixels, padded_batch_size(len(pixels))))
        for job, row in zip(encoding, codes.tolist(), strict=False):
            job.future.set_result(tuple(row))
