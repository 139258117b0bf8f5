"""Drawn images: similarity to true images through codes (reconstruction) and from captions, by CLIP."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from seed_jax.evaluation.metrics.clip_similarity import paired_similarity
from seed_jax.evaluation.task import (
    DRAWN,
    DataOptions,
    LoadedSample,
    PaperNumber,
    Prediction,
    Sample,
    Scores,
    Task,
    mean,
)
from seed_jax.evaluation.tasks.captioning import read_captions
from seed_jax.inference.generation.batching import Request
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment

if TYPE_CHECKING:
    from seed_jax.evaluation.eval_model import EvalModel

_NOTE = "Published numbers use CLIP ViT-L/14; which captions and samples they use is not known: here the first caption."


class DrawnImages(Task):
    """Images that are drawn and compared with true ones; they are written to `images` beside the predictions."""

    metric = "clip_similarity"
    right_from = None
    draws = True
    needs_clip = True

    def read(self, options: DataOptions) -> list[Sample]:
        return read_captions(options)

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        names = [name for name in ("clip_similarity", "clip_text_score") if name in predictions[0]]
        per_sample = {name: [100 * prediction[name] for prediction in predictions] for name in names}
        return Scores({name: mean(values) for name, values in per_sample.items()}, per_sample, notes=(_NOTE,))

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        return {"caption": sample.text, "codes": " ".join(map(str, prediction["codes"]))}

    def truth(self, loaded: LoadedSample) -> Image.Image:
        """Return the image that the drawn one is compared with."""
        return loaded.images[0]

    def generate_codes(
        self, prompts: Sequence[Sequence[int]], model: "EvalModel", params: SamplingParams
    ) -> list[tuple[int, ...]]:
        """Return the codes of the image that each prompt is answered with."""
        return [
            next(segment.codes for segment in answer.segments if isinstance(segment, ImageSegment))
            for answer in model.generate([Request(prompt, params) for prompt in prompts])
        ]

    def compare(
        self, batch: Sequence[LoadedSample], codes: Sequence[tuple[int, ...]], model: "EvalModel", seed: int
    ) -> list[Prediction]:
        drawn = model.draw(codes, seed)
        embeddings = model.clip.embed_images(drawn)
        similarities = paired_similarity(embeddings, model.clip.embed_images([self.truth(loaded) for loaded in batch]))
        predictions: list[Prediction] = [
            {"codes": list(own), "clip_similarity": float(similarity)}
            for own, similarity in zip(codes, similarities, strict=True)
        ]
        if model.clip.reads_text:
            texts = paired_similarity(embeddings, model.clip.embed_texts([loaded.sample.text for loaded in batch]))
            for prediction, similarity in zip(predictions, texts, strict=True):
                prediction["clip_text_score"] = float(similarity)
        for prediction, image in zip(predictions, drawn, strict=True):
            prediction[DRAWN] = image
        return predictions


class Reconstruction(DrawnImages):
    """Image to codes to image."""

    name = "reconstruction"
    summary = "images through 32 codes and back, CLIP similarity to the true image (COCO or Flickr30K)"
    paper = (
        PaperNumber("SEED-2", "clip_similarity", 77.35, "COCO, from memory"),
        PaperNumber("SEED-2", "clip_similarity", 76.52, "Flickr30K, from memory"),
    )

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        codes = [own[0] for own in model.encode([loaded.images for loaded in batch])]
        return self.compare(batch, codes, model, params.seed)


class TextToImage(DrawnImages):
    """Caption to codes by beam search, and codes to image."""

    name = "text_to_image"
    summary = "images from captions, CLIP similarity to the true image and to the caption (COCO or Flickr30K)"
    paper = (
        PaperNumber("SEED-LLaMA 8B", "clip_similarity", 69.07, "COCO"),
        PaperNumber("SEED-LLaMA-I 8B", "clip_similarity", 70.68, "COCO"),
        PaperNumber("SEED-LLaMA 8B", "clip_similarity", 65.54, "Flickr30K"),
        PaperNumber("SEED-LLaMA-I 8B", "clip_similarity", 66.55, "Flickr30K"),
    )
    sampling_params = SamplingParams(34, mode="image", num_images=1, beams=4, length_penalty_on="sequence", seed=42)

    def predict(self, batch: Sequence[LoadedSample], model: "EvalModel", params: SamplingParams) -> list[Prediction]:
        prompts = [model.prompt(loaded.sample.text) for loaded in batch]
        return self.compare(batch, self.generate_codes(prompts, model, params), model, params.seed)


TASKS = [Reconstruction(), TextToImage()]
