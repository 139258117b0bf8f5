"""Visual storytelling (VIST): the last image of a story, drawn from its five captions and first four images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from seed_jax import images as image_files
from seed_jax.errors import UserError
from seed_jax.evaluation import data_files
from seed_jax.evaluation.task import DataOptions, LoadedSample, Prediction, Sample
from seed_jax.evaluation.tasks.image_generation import DrawnImages
from seed_jax.inference.chat.prompts import PLACEHOLDER
from seed_jax.inference.generation.sampling_params import SamplingParams

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

_LENGTH = 5  # images of a story


class VisualStorytelling(DrawnImages):
    """The protocol of GILL: the fifth image given five captions and four images, by CLIP similarity."""

    name = "visual_storytelling"
    summary = "VIST: the last image of a story from its captions and first images, CLIP similarity to the true one"
    instruction_tuned_on = True
    sampling_params = SamplingParams(34, mode="image", num_images=1, beams=4, length_penalty_on="sequence", seed=42)

    def read(self, options: DataOptions) -> list[Sample]:
        split = options.split or "val"
        path = data_files.find(options.data, [f"{split}.story-in-sequence.json"], options.annotations, "--annotations")
        content = data_files.read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise UserError(f"{path} has no list `annotations`: give a story-in-sequence file with --annotations.")
        stories: dict[str, list[dict[str, Any]]] = {}
        for index, entry in enumerate(content["annotations"]):
            where = f"{path}, annotations[{index}]"
            if not isinstance(entry, list) or len(entry) != 1 or not isinstance(entry[0], dict):
                raise UserError(f"{where}: expected a list of one object, as VIST's files have.")
            stories.setdefault(str(data_files.identifier(entry[0], "story_id", where)), []).append(entry[0])
        samples = [_sample(story, parts, path, options.image_root) for story, parts in stories.items()]
        if not samples:
            raise UserError(f"{path} has no stories: give another file with --annotations.")
        return samples

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        codes = model.encode([loaded.images[: _LENGTH - 1] for loaded in batch])
        prompts = [model.prompt(loaded.sample.text, own) for loaded, own in zip(batch, codes, strict=True)]
        return self.compare(batch, self.generate_codes(prompts, model, params), model, params.seed)

    def truth(self, loaded: LoadedSample) -> Image.Image:
        return loaded.images[-1]


def _position(part: dict[str, Any], where: str) -> int:
    position = str(data_files.identifier(part, "worker_arranged_photo_order", where))
    if not position.isdecimal():
        raise UserError(f"{where}: worker_arranged_photo_order is {position!r}, expected a number: repair the file.")
    return int(position)


def _sample(story: str, parts: list[dict[str, Any]], path: Path, root: Path) -> Sample:
    where = f"{path}, story {story}"
    order = sorted(parts, key=lambda part: _position(part, where))
    if len(order) != _LENGTH:
        raise UserError(f"{where} has {len(order)} images, expected {_LENGTH}: repair the file.")
    texts = [data_files.text(part, "text", where).replace(PLACEHOLDER, "") for part in order]
    names = [str(data_files.identifier(part, "photo_flickr_id", where)) for part in order]
    images = tuple(
        data_files.existing(
            root, [f"{folder}{name}{suffix}" for folder in ("images/", "") for suffix in image_files.EXTENSIONS]
        )
        for name in names
    )
    # Each image follows its caption; the last caption is answered with the last image.
    return Sample(story, images, PLACEHOLDER.join(texts))


TASKS = [VisualStorytelling()]
