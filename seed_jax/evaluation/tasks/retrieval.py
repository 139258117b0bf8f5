"""Image-text retrieval: by the tokenizer's embeddings and codes, or by the language model's likelihoods."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seed_jax.evaluation.answering import UNTUNED_STYLES
from seed_jax.evaluation.metrics.recall import (
    Ranks,
    pointwise_mutual_information,
    ranks_by_embeddings,
    ranks_by_scores,
)
from seed_jax.evaluation.task import DataOptions, LoadedSample, PaperNumber, Prediction, Sample, Scores, Task
from seed_jax.evaluation.tasks.captioning import read_captions
from seed_jax.inference.generation.sampling_params import SamplingParams

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

_CAPTIONS_AT_ONCE = 32
_TIES = "Candidates that score as high as the right one rank before it; recall depends on the number of samples."


class EmbeddingRetrieval(Task):
    """Every image with every caption by dot products: of the causal embeddings, and of what the codes give back."""

    name = "retrieval"
    summary = "image-text retrieval, recall at 1, 5 and 10 in both directions, by causal embeddings and by codes"
    metric = "codes_mean_recall"
    paper = (
        PaperNumber("SEED-1", "embeddings_mean_recall", 80.7, "COCO, from memory"),
        PaperNumber("SEED-1", "codes_mean_recall", 77.4, "COCO, from memory"),
        PaperNumber("SEED-1", "embeddings_mean_recall", 93.7, "Flickr30K, from memory"),
        PaperNumber("SEED-1", "codes_mean_recall", 91.7, "Flickr30K, from memory"),
    )

    def read(self, options: DataOptions) -> list[Sample]:
        return read_captions(options)

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        encoder = model.image_text
        embeddings, reconstructed = encoder.embed_images([loaded.images[0] for loaded in batch])
        predictions = []
        for index, loaded in enumerate(batch):
            texts = encoder.embed_texts(loaded.sample.truth["captions"])
            prediction: Prediction = {"embedding": _rounded(embeddings[index]), "texts": [*map(_rounded, texts)]}
            if reconstructed is not None:
                prediction["code_embedding"] = _rounded(reconstructed[index])
            predictions.append(prediction)
        return predictions

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        texts = np.array([text for prediction in predictions for text in prediction["texts"]])
        owners = np.repeat(np.arange(len(samples)), [len(prediction["texts"]) for prediction in predictions])
        ranks = {}
        for name, key in (("embeddings", "embedding"), ("codes", "code_embedding")):
            if key in predictions[0]:
                images = np.array([prediction[key] for prediction in predictions])
                ranks[name] = ranks_by_embeddings(images, texts, owners)
        return _scores(ranks, (_TIES,))

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        similarity = np.array(prediction["texts"]) @ np.array(prediction["embedding"])
        captions = zip(sample.truth["captions"], similarity, strict=True)
        return {"captions": " | ".join(f"{caption} ({value:.3f})" for caption, value in captions)}


class LikelihoodRetrieval(Task):
    """Every image with every caption by log p(caption | image) and log p(codes | caption), and minus their priors.

    The number of scores grows with the square of the samples: choose a subset with --limit.
    """

    name = "retrieval_likelihood"
    summary = "image-text retrieval by likelihood with PMI correction (cost grows with the square of --limit)"
    metric = "pmi_mean_recall"

    def read(self, options: DataOptions) -> list[Sample]:
        return read_captions(options)

    def select(self, samples: list[Sample]) -> list[Sample]:
        captions = tuple(caption for sample in samples for caption in sample.truth["captions"])
        return [dataclasses.replace(sample, choices=captions) for sample in samples]

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        captions = batch[0].sample.choices
        codes = model.encode([one.images for one in batch])
        bos = [model.vocabulary.bos]
        style = model.style if model.style in UNTUNED_STYLES else "base"
        prompts = [*(model.prompt("", images, style=style) for images in codes), bos]
        totals: list[list[float]] = [[] for _ in prompts]
        images: list[list[float]] = [[] for _ in batch]
        own = [group[0] for group in codes]
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
            part = captions[start : start + _CAPTIONS_AT_ONCE]
            for total, scores in zip(totals, model.score(prompts, [part] * len(prompts)), strict=True):
                total += [score.total for score in scores]
            for column in model.score_images([model.prompt(caption, style="base") for caption in part], own):
                for image, score in zip(images, column, strict=True):
                    image.append(score.total)
        (priors,) = model.score_images([bos], own)
        # The prior of the captions is the same for all images; each line keeps it, so that lines do not depend on one
        # another.
        return [
            {"log_p": total, "log_prior": totals[-1], "log_p_image": image, "log_prior_image": prior.total}
            for total, image, prior in zip(totals[:-1], images, priors, strict=True)
        ]

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        # The captions of images that were left out as unusable are no candidates.
        columns, image_of_text, column = [], [], 0
        for index, sample in enumerate(samples):
            for caption in sample.truth["captions"]:
                column = sample.choices.index(caption, column)
                columns.append(column)
                image_of_text.append(index)
                column += 1
        owners = np.array(image_of_text)
        texts = np.array([prediction["log_p"] for prediction in predictions])[:, columns]
        images = np.array([prediction["log_p_image"] for prediction in predictions])[:, columns].T
        text_prior = np.array(predictions[0]["log_prior"])[columns]
        image_prior = np.array([prediction["log_prior_image"] for prediction in predictions])
        ranks = {
            "pmi": ranks_by_scores(
                pointwise_mutual_information(texts, text_prior),
                owners,
                pointwise_mutual_information(images, image_prior),
            ),
            "likelihood": ranks_by_scores(texts, owners, images),
        }
        return _scores(ranks, (_TIES, "Captions rank by log p(caption | image), images by log p(codes | caption)."))

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        values = np.array(prediction["log_p"]) - np.array(prediction["log_prior"])
        return {"best by PMI": sample.choices[int(values.argmax())], "truth": " | ".join(sample.truth["captions"])}


def _rounded(vector: np.ndarray) -> list[float]:
    return [round(float(value), 7) for value in vector]


def _scores(ranks: dict[str, Ranks], notes: tuple[str, ...]) -> Scores:
    metrics: dict[str, float] = {}
    per_sample: dict[str, list[float]] = {}
    for name, own in ranks.items():
        metrics |= {f"{name}_{key}": 100 * value for key, value in own.recalls().items()}
        per_sample[f"{name}_i2t_recall@1"] = [100.0 * bool(rank < 1) for rank in own.image_to_text]
    return Scores(metrics, per_sample, notes=notes)


TASKS = [EmbeddingRetrieval(), LikelihoodRetrieval()]
