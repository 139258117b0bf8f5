"""Images of several requests share batches and come out as alone; drawing reports progress and can be given up."""

import concurrent.futures
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.serving.engine import EngineClosedError, QueueFullError
from seed_jax.serving.images import DrawWorker, EncodeWorker
from tests.models.diffusion.cases import SMALLEST, random_decoder
from tests.models.tokenizer.cases import random_like

SIZES = SeedTokenizerConfig.tiny()
FAST = DrawOptions(sampler="dpmpp", steps=3)
LEVEL = 1  # the last digit of a pixel, where float32 rounds differently


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    return ImageTokenizer(SIZES, random_like(abstract_params(SIZES)), batch_size=4)


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    assert SIZES.embedding_shape == (SMALLEST.embedding_width,)
    return Drawer(SMALLEST, random_decoder(SMALLEST)[1], mesh=sharding.make_mesh({"replica": 1}, jax.devices()[:1]))


@pytest.fixture(scope="module")
def codes() -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.random.default_rng(0).integers(0, SIZES.num_codes, (4, 32)).tolist()]


def images(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (4, 5, 3), np.uint8)).resize((70, 60), 0) for _ in range(count)]


def test_images_of_many_callers_are_encoded_together(tokenizer):
    expected = [tuple(row) for row in tokenizer.encode(images(3)).tolist()]
    worker = EncodeWorker(tokenizer, max_batch=4, max_queued=3)
    with pytest.raises(EngineClosedError):
        worker.encode(images(1)[0])
    worker.start()
    futures = [worker.encode(image) for image in images(3)]
    assert [future.result() for future in futures] == expected
    with pytest.raises(UserError):
        worker.encode(b"no image")
    assert worker.encode(images(1)[0]).result() == expected[0]
    worker.shutdown(5.0)
    with pytest.raises(EngineClosedError):
        worker.encode(images(1)[0])


def draw_together(drawer, tokenizer, codes, count: int) -> None:
    """Draw images in one batch, and compare them with `Drawer.draw`."""
    expected = drawer.draw(tokenizer.embed_codes(np.array(codes[:count])), range(7, 7 + count), FAST, batch_size=1)
    seen, turns = [], []
    worker = DrawWorker(
        drawer,
        tokenizer,
        steps_per_turn=2,
        wait_between_steps=lambda: turns.append(threading.current_thread().name),
        max_batch=count,
        window_s=60.0,  # ends when the batch is full, so that a slow machine makes no second one
    )
    worker.start()
    jobs = [worker.draw(codes[i], 7 + i, FAST, lambda *step: seen.append(step)) for i in range(count)]
    for job, image in zip(jobs, expected, strict=True):
        assert np.abs(job.future.result().astype(int) - image).max() <= LEVEL
    assert {job.num_steps for job in jobs} == {3}
    # Two steps and the last one, each after a turn of the language model.
    assert seen == [(2, 3)] * count + [(3, 3)] * count
    assert len(turns) == 2
    worker.shutdown()


def test_an_image_is_drawn_as_by_the_drawer_with_progress(tokenizer, drawer, codes):
    draw_together(drawer, tokenizer, codes, 1)


@pytest.mark.slow
def test_images_of_many_callers_are_drawn_together(tokenizer, drawer, codes):
    draw_together(drawer, tokenizer, codes, 4)


def test_bad_drawings_are_refused(tokenizer, drawer, codes):
    worker = DrawWorker(drawer, tokenizer)
    with pytest.raises(EngineClosedError):
        worker.draw(codes[0], 0, FAST)
    with pytest.raises(UserError, match="codes"):
        worker.draw(codes[0][:31], 0, FAST)
    with pytest.raises(UserError, match="'euler'"):
        worker.draw(codes[0], 0, DrawOptions(sampler="euler"))


def test_a_drawing_is_given_up_between_two_steps_and_unequal_options_do_not_share_a_batch(tokenizer, drawer, codes):
    begun, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        begun.set()
        assert go_on.wait(120.0)

    worker = DrawWorker(drawer, tokenizer, wait_between_steps=pause, max_batch=4, max_queued=2)
    worker.start()
    running = worker.draw(codes[0], 1, FAST)
    assert begun.wait(120.0)
    waiting = worker.draw(codes[1], 2, DrawOptions(sampler="dpmpp", steps=2))
    kept = worker.draw(codes[2], 3, FAST)
    with pytest.raises(QueueFullError) as refused:
        worker.draw(codes[3], 4, FAST)
    assert refused.value.retry_after_s >= 1
    running.cancel()
    waiting.cancel()
    go_on.set()
    for job in (running, waiting):
        with pytest.raises(concurrent.futures.CancelledError):
            job.future.result(120.0)
    assert kept.future.result(120.0).shape == (SMALLEST.image_size, SMALLEST.image_size, 3)
    worker.shutdown(5.0)
    assert (worker.num_waiting, worker.num_running) == (0, 0)


def test_a_failure_ends_its_batch_only(tokenizer, drawer, codes):
    worker = DrawWorker(drawer, tokenizer)
    worker.start()

    def fail(done: int, steps: int) -> None:
        raise ValueError("the reader is gone")

    with pytest.raises(ValueError, match="gone"):
        worker.draw(codes[0], 1, FAST, fail).future.result(120.0)
    assert worker.draw(codes[0], 1, FAST).future.result(120.0).shape == (SMALLEST.image_size, SMALLEST.image_size, 3)
    worker.shutdown()
