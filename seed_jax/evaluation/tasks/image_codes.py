"""Codes: whether generated images are complete, and how much of the codebook images use."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seed_jax import images as image_files
from seed_jax.data.inspect.code_usage import code_stats
from seed_jax.errors import UserError
from seed_jax.evaluation.task import DataOptions, LoadedSample, PaperNumber, Prediction, Sample, Scores, Task, mean
from seed_jax.evaluation.tasks.captioning import FILES, read_captions
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, ImageSegment, TextSegment

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

# Decoding mode -> changes of the task's options.
_MODES = {
    "greedy": {"beams": 1, "temperature": 0.0},
    "sampled": {"beams": 1, "temperature": 1.0, "top_p": 0.5},
    "beams": {"beams": 4, "temperature": 0.0},
}


class ValidImages(Task):
    """The share of captions after which, and `<img>`, exactly 32 codes and `</img>` are generated."""

    name = "valid_images"
    summary = "share of generated images with exactly 32 codes, with and without the grammar, by decoding mode"
    metric = "valid_beams"
    paper = (
        PaperNumber("causal codes", "valid_beams", 99.94, "4,997 of 5,000"),
        PaperNumber("bilateral codes", "valid_beams", 42.68, "2,134 of 5,000"),
    )
    sampling_params = SamplingParams(40, length_penalty_on="sequence", seed=42)

    def read(self, options: DataOptions) -> list[Sample]:
        # The images are not needed, so that captions of any split will do.
        samples = read_captions(options, (*FILES, "captions_*.json"))
        return [dataclasses.replace(sample, images=()) for sample in samples]

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        predictions: list[Prediction] = [{} for _ in batch]
        for name, changes in _MODES.items():
            for grammar in (False, True):
                mode = {"mode": "image", "num_images": 1} if grammar else {"mode": "none", "num_images": None}
                own = dataclasses.replace(params, **changes, **mode)
                answers = model.generate([self._request(loaded.sample, model, own, grammar) for loaded in batch])
                for prediction, answer in zip(predictions, answers, strict=True):
                    prediction[f"{name}_grammar" if grammar else name] = _is_valid(answer, grammar, model)
        return predictions

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        per_sample = {
            f"valid_{name}": [100.0 * prediction[name] for prediction in predictions]
            for mode in _MODES
            for name in (mode, f"{mode}_grammar")
        }
        return Scores({name: mean(values) for name, values in per_sample.items()}, per_sample)

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        valid = [name for name in prediction if name != "id" and prediction[name]]
        return {"caption": sample.text, "valid": ", ".join(valid)}

    def _request(self, sample: Sample, model: "EvalModel", params: SamplingParams, grammar: bool) -> Request:
        prompt = model.prompt(sample.text)
        return Request(prompt if grammar else [*prompt, model.vocabulary.boi], params)


def _is_valid(answer: Generation, grammar: bool, model: "EvalModel") -> bool:
    """Return whether the first image is complete; without the grammar `<img>` belongs to the prompt."""
    if grammar:
        first = next((segment for segment in answer.segments if not isinstance(segment, TextSegment)), None)
        return isinstance(first, ImageSegment)
    vocabulary = model.vocabulary
    head = answer.ids[: vocabulary.codes_per_image + 1]
    codes = [vocabulary.code_of(token) for token in head[:-1]]
    return len(head) == vocabulary.codes_per_image + 1 and head[-1] == vocabulary.eoi and None not in codes


class Codebook(Task):
    """How much of the codebook a directory of images uses."""

    name = "codebook"
    summary = "used codes, perplexity and dead codes over the images of a directory"
    metric = "perplexity"

    def read(self, options: DataOptions) -> list[Sample]:
        root = options.image_root
        if not root.is_dir():
            raise UserError(f"{root} is not a directory: give a directory of images with --data.")
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in image_files.EXTENSIONS)
        if not paths:
            raise UserError(f"{root} holds no images ({', '.join(image_files.EXTENSIONS)}): give another directory.")
        return [Sample(path.relative_to(root).as_posix(), (path,)) for path in paths]

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        size = model.vocabulary.num_codes
        codes = model.encode([loaded.images for loaded in batch])
        return [{"codes": list(own[0]), "codebook_size": size} for own in codes]

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        size = predictions[0]["codebook_size"]
        stats = code_stats((np.array(prediction["codes"]) for prediction in predictions), size)
        return Scores(
            {
                "perplexity": stats.perplexity,
                "used_codes": float(stats.used),
                "dead_codes": float(size - stats.used),
                "used_percent": 100 * stats.used / size,
            }
        )

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        return {"codes": " ".join(map(str, prediction["codes"]))}


TASKS = [ValidImages(), Codebook()]
