"""A service that plays scripted answers, for tests of the chat page."""

import asyncio

import numpy as np
from PIL import Image

from seed_jax.inference.generation.segments import Generation
from seed_jax.serving.engine.request import QueueFullError
from seed_jax.serving.messages import (
    AnswerUsage,
    Finished,
    ImageCodes,
    ImageDrawn,
    ImageProgress,
    ImageStarted,
    Prompt,
    TextDelta,
)
from seed_jax.serving.service import Places, SeedService
from tests.inference.generation.cases import vocabulary

CODES = tuple(range(32))
RED = Image.new("RGB", (64, 64), "red")
FINISHED = Finished("eos", AnswerUsage(1, 0, 0, 1, 0), Generation((), (), "eos"))
SCRIPT = [
    TextDelta("A "), TextDelta("dog:\n"), ImageStarted(0), ImageCodes(0, CODES), TextDelta("and a cat"),
    ImageStarted(1), ImageProgress(0, 3, 20), ImageCodes(1, CODES[::-1]), ImageDrawn(1, RED), ImageDrawn(0, RED),
    FINISHED,
]  # fmt: skip


class Player(SeedService):
    """Plays events; an exception among them is raised, and a number waits for so many seconds."""

    can_encode = can_draw = True
    style = "vicuna"
    max_model_len = 512
    image_size = 64

    def __init__(self, *script, num_dropped=0, refusal=None):
        self.script, self.num_dropped, self.refusal = script, num_dropped, refusal
        self.prompts, self.params, self.closed, self.num_requests = [], [], 0, 0
        self.vocabulary = vocabulary()

    def reserve(self, count=1):
        if isinstance(self.refusal, QueueFullError):
            raise self.refusal
        self.num_requests += count
        return Places(self, count)

    def release(self, count):
        self.num_requests -= count

    def check_draw_options(self, options):
        pass

    async def encode(self, images):
        return [tuple([int(np.asarray(image)[0, 0, 0]) % 64] * 32) for image in images]

    async def prepare(self, messages, params, *, drop_oldest=False):
        if self.refusal:
            raise self.refusal
        self.prompts.append([(message.role, tuple(message.content)) for message in messages])
        return Prompt((1,), 0, self.num_dropped)

    async def answer(self, prompt, params, draw=None, **_):
        self.params.append(params)
        try:
            for event in self.script:
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, int | float):
                    await asyncio.sleep(event)
                else:
                    yield event
                await asyncio.sleep(0)
        finally:
            self.closed += 1
