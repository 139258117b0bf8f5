"""Image-text retrieval by the language model's likelihood of captions, with and without the prior's correction."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seed_jax.evaluation.answering import UNTUNED_STYLES
from seed_jax.evaluation.metrics.recall import pointwise_mutual_information, ranks_by_scores
from seed_jax.evaluation.task import DataOptions, LoadedSample, Prediction, Sample, Scores, Task
from seed_jax.evaluation.tasks.captioning import read_captions
from seed_jax.inference.generation.sampling_params import SamplingParams

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

_CAPTIONS_AT_ONCE = 32


class LikelihoodRetrieval(Task):
    """Every image with every caption: log p(caption | image), and minus log p(caption).

    The number of scores grows with the square of the samples: choose a subset with --limit.
    """

    name = "retrieval"
    summary = "image-text retrieval by likelihood with PMI correction (cost grows with the square of --limit)"
    metric = "pmi_mean_recall"

    def read(self, options: DataOptions) -> list[Sample]:
        return read_captions(options)

    def select(self, samples: list[Sample]) -> list[Sample]:
        captions = tuple(caption for sample in samples for caption in sample.truth["captions"])
        return [dataclasses.replace(sample, choices=captions) for sample in samples]

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        captions = batch[0].sample.choices
        style = model.style if model.style in UNTUNED_STYLES else "base"
        prompts = [model.prompt("", images, style=style) for images in model.encode([one.images for one in batch])]
        prompts.append([model.vocabulary.bos])
        totals: list[list[float]] = [[] for _ in prompts]
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
            part = captions[start : start + _CAPTIONS_AT_ONCE]
            for total, scores in zip(totals, model.score(prompts, [part] * len(prompts)), strict=True):
                total += [score.total for score in scores]
        # The prior is the same for all images; each line keeps it, so that lines do not depend on one another.
        return [{"log_p": total, "log_prior": totals[-1]} for total in totals[:-1]]

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        matrix = np.array([prediction["log_p"] for prediction in predictions])
        prior = np.array(predictions[0]["log_prior"])
        # The captions of images that were left out as unusable are no candidates.
        columns, image_of_text, column = [], [], 0
        for index, sample in enumerate(samples):
            for caption in sample.truth["captions"]:
                column = sample.choices.index(caption, column)
                columns.append(column)
                image_of_text.append(index)
                column += 1
        matrix, prior = matrix[:, columns], prior[columns]
        metrics: dict[str, float] = {}
        per_sample: dict[str, list[float]] = {}
        for name, scores in (("pmi", pointwise_mutual_information(matrix, prior)), ("likelihood", matrix)):
            ranks = ranks_by_scores(scores, np.array(image_of_text))
            metrics |= {f"{name}_{key}": 100 * value for key, value in ranks.recalls().items()}
            per_sample[f"{name}_i2t_recall@1"] = [100.0 * bool(rank < 1) for rank in ranks.image_to_text]
        note = "Candidates that score as high as the right one rank before it; recall depends on the number of samples."
        return Scores(metrics, per_sample, notes=(note,))

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        values = np.array(prediction["log_p"]) - np.array(prediction["log_prior"])
        return {"best by PMI": sample.choices[int(values.argmax())], "truth": " | ".join(sample.truth["captions"])}


TASKS = [LikelihoodRetrieval()]
