"""The two usual ways to answer a sample: generated text, and choices ranked by likelihood."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seed_jax.evaluation.task import LoadedSample, Prediction, Sample, Task
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import TextSegment

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

LETTERS = "ABCDEFGHIJ"
UNTUNED_STYLES = ("base", "seed1")  # prompt styles of models that continue a text instead of following instructions
# How choices are compared: the sum of token log-probabilities (the official rule of SEED-Bench with LLaMA), their mean,
# the sum by characters, and the sum without the choice's log-probability after BOS alone.
RULES = ("sum", "token_mean", "character_mean", "pmi")


class GeneratedText(Task):
    """A task whose predictions are generated texts."""

    def prompt(self, sample: Sample, style: str) -> str:
        """Return the text of the user's message in a prompt style; images precede it."""
        raise NotImplementedError

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        codes = model.encode([loaded.images for loaded in batch])
        requests = [
            Request(model.prompt(self.prompt(loaded.sample, model.style), images), params)
            for loaded, images in zip(batch, codes, strict=True)
        ]
        return [
            {
                "prediction": self.clean(
                    "".join(segment.text for segment in answer.segments if isinstance(segment, TextSegment))
                ),
                "finish_reason": answer.finish_reason,
                "tokens": model.vocabulary.pieces(answer.ids),
            }
            for answer in model.generate(requests)
        ]

    def clean(self, text: str) -> str:
        """Return the answer as it is scored and submitted."""
        return text.strip()


class RankedChoices(Task):
    """A task whose predictions are the letters of the most likely choices; every rule of comparison is kept."""

    def prompt(self, sample: Sample, style: str) -> str:
        """Return the text of the user's message in a prompt style; images precede it."""
        return f"Question: {sample.text}\nAnswer:" if style in UNTUNED_STYLES else sample.text

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        codes = model.encode([loaded.images for loaded in batch])
        prompts = [
            model.prompt(self.prompt(loaded.sample, model.style), images)
            for loaded, images in zip(batch, codes, strict=True)
        ]
        choices = [loaded.sample.choices for loaded in batch]
        likelihoods = model.score(prompts, choices)
        priors = model.score([[model.vocabulary.bos]] * len(batch), choices)
        predictions = []
        for loaded, scores, alone in zip(batch, likelihoods, priors, strict=True):
            values = {
                "sum": [score.total for score in scores],
                "token_mean": [score.mean for score in scores],
                "character_mean": [
                    score.total / len(text) for score, text in zip(scores, loaded.sample.choices, strict=True)
                ],
                "pmi": [score.total - prior.total for score, prior in zip(scores, alone, strict=True)],
            }
            chosen = {rule: LETTERS[max(range(len(row)), key=row.__getitem__)] for rule, row in values.items()}
            predictions.append({"prediction": chosen["sum"], "chosen": chosen, "log_probabilities": values})
        return predictions
