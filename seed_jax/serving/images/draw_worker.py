"""Codes to images, a few sampler steps at a time, so that the language model decodes in between."""

from collections.abc import Callable, Sequence

import numpy as np

from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions, resolve_options
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.diffusion import sampler_steps
from seed_jax.serving.images.batch_worker import BATCH_SIZES, WINDOW_S, BatchWorker, Job, padded_batch_size


class DrawJob(Job):
    """An image that is being drawn; its result is uint8 [H, W, 3].

    Attributes:
        num_steps: evaluations of the model in all.
    """

    def __init__(
        self,
        codes: tuple[int, ...],
        seed: int,
        options: DrawOptions,
        num_steps: int,
        on_progress: Callable[[int, int], None] | None,
    ):
        super().__init__(options)
        self.codes = codes
        self.seed = seed
        self.options = options
        self.num_steps = num_steps
        self.on_progress = on_progress


class DrawWorker(BatchWorker):
    """Draws the images of all requests; those with equal options share batches.

    Example:
        worker = DrawWorker(drawer, tokenizer, wait_between_steps=engine.wait_for_chunk)
        worker.start()
        pixels = worker.draw(codes, seed=7, on_progress=print).future.result()

    Args:
        drawer: the decoder.
        tokenizer: embeds the codes.
        steps_per_turn: sampler steps between two turns of the language model.
        wait_between_steps: called between the turns; `Engine.wait_for_chunk` lets a decode chunk run, where both are on
            one device.
        max_batch: images at a time: 1, 2, 4 or 8.
        max_queued: waiting images; more raise `QueueFullError`.
        window_s: how long the oldest image waits for company.
    """

    def __init__(
        self,
        drawer: Drawer,
        tokenizer: ImageTokenizer,
        *,
        steps_per_turn: int = 1,
        wait_between_steps: Callable[[], None] | None = None,
        max_batch: int = 8,
        max_queued: int = 64,
        window_s: float = WINDOW_S,
    ):
        super().__init__("draw images", max_batch, max_queued, window_s)
        self._drawer = drawer
        self._tokenizer = tokenizer
        self._steps_per_turn = steps_per_turn
        self._wait_between_steps = wait_between_steps

    def compile(self, options: DrawOptions | None = None) -> None:
        """Compile the programs of all batch sizes for some options, so that no request waits for it."""
        blank = (0,) * self._tokenizer.config.codes_per_image
        for count in (count for count in BATCH_SIZES if count <= self._max_batch):
            drawing = self._drawer.begin(self._embed([blank] * count), [0] * count, options, batch_size=count)
            drawing.advance(1)
            drawing.completed_steps = drawing.num_steps
            drawing.finish()

    def draw(
        self,
        codes: Sequence[int],
        seed: int,
        options: DrawOptions | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> DrawJob:
        """Queue an image.

        Args:
            codes: the image's codes.
            seed: of its noise.
            options: sampler, steps, guidance and so on.
            on_progress: called in the worker's thread with the steps that are done and those in all.

        Raises:
            UserError: an option or a code is out of range.
            QueueFullError: too many images are waiting.
            EngineClosedError: the worker does not run.
        """
        options = resolve_options(self._drawer.config, options or DrawOptions())
        assert options.steps is not None  # resolved
        config = self._drawer.config
        num_steps = len(sampler_steps(options.sampler or config.sampler, config.noise, options.steps))
        self._tokenizer.check_codes(np.asarray([codes], np.int32))
        job = DrawJob(tuple(codes), seed, options, num_steps, on_progress)
        self.enqueue(job)
        return job

    def process(self, jobs: Sequence[Job]) -> None:
        batch = [job for job in jobs if isinstance(job, DrawJob)]
        drawing = self._drawer.begin(
            self._embed([job.codes for job in batch]),
            [job.seed for job in batch],
            batch[0].options,
            batch_size=padded_batch_size(len(batch)),
        )
        while drawing.completed_steps < drawing.num_steps:
            if all(job.is_cancelled for job in batch):
                return
            if self._wait_between_steps is not None:
                self._wait_between_steps()
            done = drawing.advance(self._steps_per_turn)
            for job in batch:
                if job.on_progress is not None and not job.is_cancelled:
                    job.on_progress(done, drawing.num_steps)
        pixels = drawing.finish()
        for job, image in zip(batch, pixels, strict=True):
            if not job.is_cancelled:
                job.future.set_result(image)

    def _embed(self, codes: Sequence[tuple[int, ...]]) -> np.ndarray:
        return self._tokenizer.embed_codes(np.asarray(codes, np.int32))
