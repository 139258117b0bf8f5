"""Options of the stage that fine-tunes a diffusion decoder."""

import dataclasses

from seed_jax.train.config.common import ImageDataConfig, Problems, TrainConfig
from seed_jax.train.config.schema import Section, negative, not_one_of

MODELS = ("full", "small", "tiny")
PARTS = ("unet", "vae", "vae_decoder")
DECODERS = ("unclip", "stable_diffusion")
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class DecoderModelConfig(Section):
    """The decoder.

    Attributes:
        decoder: "unclip" (SEED-2's) or "stable_diffusion" (SEED-1's Stable Diffusion 1.4).
        config: name of its architecture, "full", "small" or "tiny"; ignored where `init` is given.
        init: model directory or workdir of this stage; "" starts from random weights.
        train: parts that train: "unet"; "vae", the autoencoder, which a decoder from random weights needs first; or
            "vae_decoder", its decoder alone, so that latents stay what they are and a UNet remains of use.
        condition_dropout: share of images trained without embedding, for classifier-free guidance.
        noise_level: greatest noise level added to unCLIP's embedding, 0 to 999; generation uses 0.
        ema_decay: of the averaged weights that generation uses.
        divergence_weight: of the KL divergence of the latents from a standard normal.
        perceptual_weight: of the squared error between the features that `source.vision` computes from an image and
            from its reconstruction; 0 compares pixels only.
        latent_noise: standard deviation up to which Gaussian noise is added to the latents that the autoencoder
            decodes, because those that a UNet samples are not exact.
        remat: recompute activations in the backward pass.
    """

    decoder: str = "unclip"
    config: str = "full"
    init: str = ""
    train: tuple[str, ...] = ("unet",)
    condition_dropout: float = 0.1
    noise_level: int = 0
    ema_decay: float = 0.9999
    divergence_weight: float = 1e-6
    perceptual_weight: float = 0.0
    latent_noise: float = 0.0
    remat: bool = True

    @property
    def trained_collections(self) -> tuple[str, ...]:
        """Names of the parameter collections of which at least a part trains, "unet" and "vae"."""
        return tuple(dict.fromkeys(part.removesuffix("_decoder") for part in self.train))

    def problems(self) -> Problems:
        yield from not_one_of(self, decoder=DECODERS)
        if not self.init:
            yield from not_one_of(self, config=MODELS)
        if not self.train or set(self.train) - set(PARTS):
            yield "train", f"is {self.train}, expected one or more of {', '.join(PARTS)}"
        elif {"vae", "vae_decoder"} <= set(self.train):
            yield "train", f"is {self.train}, but vae includes vae_decoder: name one of them"
        for name in ("condition_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}, expected 0 to less than 1"
        if not 0 <= self.noise_level <= 999:
            yield "noise_level", f"is {self.noise_level}, expected 0 to 999"
        elif self.noise_level and self.decoder != "unclip":
            yield "noise_level", f"is {self.noise_level}, but only unCLIP's embeddings are noised: set it to 0"
        yield from negative(self, "divergence_weight", "perceptual_weight", "latent_noise")
        if "vae" not in self.trained_collections:
            for name in ("perceptual_weight", "latent_noise"):
                if getattr(self, name) > 0:
                    yield name, f"is {getattr(self, name)}, but the autoencoder does not train: add it to model.train"


@dataclasses.dataclass(frozen=True)
class EmbeddingSourceConfig(Section):
    """The frozen model that makes the embeddings; exactly one is named.

    Attributes:
        tokenizer: image tokenizer whose codes are decoded: a model directory or workdir, or "untrained".
        vision: Hugging Face directory of a CLIP vision tower, as Stable Diffusion unCLIP itself was trained.
    """

    tokenizer: str = ""
    vision: str = ""


@dataclasses.dataclass(frozen=True)
class DecoderDataConfig(ImageDataConfig):
    """Images to generate.

    Attributes:
        interpolation: of the tokenizer's input; targets are resized bicubically.
        keep_ratio: crop the center instead of squashing.
    """

    batch_size: int = 512
    interpolation: str = "bilinear"
    keep_ratio: bool = True

    def problems(self) -> Problems:
        yield from super().problems()
        yield from not_one_of(self, interpolation=INTERPOLATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(TrainConfig):
    """Options of the fine-tuning of a diffusion decoder.

    Attributes:
        samples: images generated after the last step into `samples.png`; 0 generates none.
    """

    model: DecoderModelConfig = DecoderModelConfig()
    source: EmbeddingSourceConfig = EmbeddingSourceConfig()
    data: DecoderDataConfig = DecoderDataConfig()
    samples: int = 8

    def problems(self) -> Problems:
        yield from super().problems()
        yield from negative(self, "samples")
        if not self.data.demo and not self.data.mixture:
            yield "data.mixture", "is empty: name at least one directory of shards, or set data.demo=True"
        if self.model.perceptual_weight > 0 and "vae" in self.model.trained_collections and not self.source.vision:
            yield "model.perceptual_weight", "needs features to compare: name source.vision"
        if self.source.vision and self.model.decoder != "unclip":
            yield (
                "source.vision",
                f"is {self.source.vision!r}, but Stable Diffusion is conditioned on text states: name source.tokenizer",
            )
        if bool(self.source.tokenizer) == bool(self.source.vision):
            yield (
                "source.tokenizer",
                (
                    f"is {self.source.tokenizer!r} and source.vision is {self.source.vision!r}: name exactly one, an "
                    "image tokenizer or a CLIP vision tower"
                ),
            )
