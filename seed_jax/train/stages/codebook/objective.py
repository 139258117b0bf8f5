"""The loss terms of stage II: quantization, reconstruction, and the distance to CLIP's outputs (spec A.10, G)."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seed_jax.losses.tokenizer import reconstruction_loss, squared_distance
from seed_jax.models.tokenizer.seed_tokenizer import EncoderOutput, SeedTokenizer
from seed_jax.models.tokenizer.text_branch import TextBranch
from seed_jax.train.config.tokenizer import ObjectiveConfig
from seed_jax.typing import Tree


@flax.struct.dataclass
class LossTerms:
    """The weighted loss terms of each image, and its encoding."""

    embed: Float[Array, " B"]
    reconstruction: Float[Array, " B"]
    image: Float[Array, " B"] | None
    text: Float[Array, " B"] | None
    encoded: EncoderOutput

    def by_name(self) -> dict[str, Float[Array, " B"]]:
        """Return the terms that are computed, by name."""
        terms = {"embed": self.embed, "reconstruction": self.reconstruction, "image": self.image, "text": self.text}
        return {name: term for name, term in terms.items() if term is not None}

    @property
    def total(self) -> Float[Array, " B"]:
        return sum(self.by_name().values(), start=jnp.zeros_like(self.embed))


def loss_terms(
    options: ObjectiveConfig,
    model: SeedTokenizer,
    variables: Tree,
    image: Float[Array, "B H W 3"],
    image_target: Float[Array, "B E"] | None,
    *,
    branch: TextBranch | None = None,
    text_target: Float[Array, "B T F"] | None = None,
    codebook_gradient: bool = True,
    rngs: dict[str, Array] | None = None,
) -> LossTerms:
    """Compute every term.

    Args:
        options: weights of the terms and how they are computed.
        model: the tokenizer.
        variables: `params` of the tokenizer and, with a `branch`, `text_branch`.
        image: normalized pixels.
        image_target: CLIP's image embedding, not normalized; None for a tokenizer that predicts text states.
        branch: the text branch, if it is trained.
        text_target: states of CLIP's text encoder, for the text branch or SEED-1's head.
        codebook_gradient: off where moving averages update the codes.
        rngs: keys of dropout; without them there is none.
    """
    params = variables["params"]
    if not codebook_gradient:
        params = {**params, "codebook": jax.lax.stop_gradient(params["codebook"])}
    deterministic = rngs is None

    def forward(model: SeedTokenizer):
        encoded = model.encode(image, deterministic=deterministic or not options.frozen_dropout)
        up = model.decode_task(encoded.quantized.vectors)
        return encoded, up, model.reconstruct(up), model.project(up, deterministic=deterministic)

    outputs: Any = model.apply({"params": params}, method=forward, rngs=rngs)
    encoded, up, reconstructed, embedding = outputs
    image_term = text = None
    if model.config.predicts_text:
        assert text_target is not None  # the stage has a text teacher
        text = options.text * squared_distance(embedding, text_target)
    else:
        assert image_target is not None
        image_term = options.image * squared_distance(embedding, image_target)
    if branch is not None and text_target is not None:
        branch_variables = {"params": variables["text_branch"]}
        states: Any = branch.apply(branch_variables, up, deterministic=deterministic, rngs=rngs)
        text = options.text * squared_distance(states, text_target)
    return LossTerms(
        embed=options.embed * encoded.quantized.loss.mean(-1),
        reconstruction=options.reconstruction
        * reconstruction_loss(options.reconstruction_kind, reconstructed, encoded.embeddings),
        image=image_term,
        text=text,
        encoded=encoded,
    )
