"""The kinds of models: the value of `kind` in a model directory's config.json."""

import enum


class ModelKind(enum.StrEnum):
    """What a model directory holds; the values are stored in `config.json` and never change."""

    IMAGE_TOKENIZER = "seed_tokenizer"
    QFORMER = "seed_qformer"
    LLAMA = "llama"
    OPT = "opt"
    SEED_LLAMA = "seed_llama"
    UNCLIP = "unclip"
    STABLE_DIFFUSION = "stable_diffusion"
    CLIP_VISION = "clip_vision"
    CLIP_TEXT = "clip_text"

    @property
    def description(self) -> str:
        """Name the kind in messages and reports."""
        return _DESCRIPTIONS[self]


# The kinds that are language models, as `models.language_models` lists them.
LANGUAGE_MODELS = (ModelKind.LLAMA, ModelKind.OPT)
# The kinds that draw images from generation embeddings, as `models.diffusion.DECODERS` lists them.
DECODERS = (ModelKind.UNCLIP, ModelKind.STABLE_DIFFUSION)

_DESCRIPTIONS = {
    ModelKind.IMAGE_TOKENIZER: "an image tokenizer",
    ModelKind.QFORMER: "a causal Q-Former (stage I of the image tokenizer)",
    ModelKind.LLAMA: "a language model",
    ModelKind.OPT: "an OPT language model",
    ModelKind.SEED_LLAMA: "a bundle of language model, image tokenizer and decoder",
    ModelKind.UNCLIP: "an unCLIP image decoder",
    ModelKind.STABLE_DIFFUSION: "a Stable Diffusion 1 image decoder",
    ModelKind.CLIP_VISION: "a CLIP vision encoder",
    ModelKind.CLIP_TEXT: "a CLIP text encoder",
}
