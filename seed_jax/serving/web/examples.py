"""Examples of the chat page: requests about a scene of the synthetic world, as the quickstart's model was trained."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from seed_jax.data.templates.phrases import Phrases
from seed_jax.data.world import wording
from seed_jax.data.world.rendering import render
from seed_jax.data.world.scenes import sample_scene

IMAGE_SIDE = 192
SCENE_SEED = 3  # two objects in a row


@dataclasses.dataclass(frozen=True)
class Example:
    """A message to begin a conversation with."""

    label: str
    text: str
    images: tuple[Path, ...] = ()


def make_examples(folder: Path, *, reads_images: bool, draws_images: bool) -> list[Example]:
    """Write the image of the examples and return those that the models can answer.

    Args:
        folder: directory of the image.
        reads_images: whether there is an image tokenizer.
        draws_images: whether there is an image decoder.
    """
    rng = np.random.default_rng(SCENE_SEED)
    scene = sample_scene(rng, num_objects=2)
    examples = []
    if draws_images:
        phrases = Phrases.load()
        index = phrases.requests_drawn[0]
        caption = wording.captions(scene)[0]
        request = f"{phrases.requests[index]} {caption}{phrases.closing_marks[index]}"
        examples.append(Example("Draw an image", request))
    if reads_images:
        path = folder / "example.png"
        Image.fromarray(render(scene, IMAGE_SIDE, rng)).save(path)
        question = wording.questions(scene)[0].text
        examples.append(Example("Ask about an image", question, (path,)))
        if draws_images:
            change = next(one for one in wording.changes(scene) if one.kind == "background")
            examples.append(Example("Change an image", change.instruction, (path,)))
    return examples
