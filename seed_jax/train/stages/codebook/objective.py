"""What stage II descends: quantisation, reconstruction, and the distance to CLIP's embeddings (spec A.10)."""

import dataclasses
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Float

from seed_jax.losses.tokenizer import reconstruction_loss, squared_distance
from seed_jax.models.tokenizer.seed_tokenizer import Encoded, SeedTokenizer
from seed_jax.models.tokenizer.text_branch import TextBranch

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of the terms and how they are computed; the defaults are the original's.

    Attributes:
        reconstruction_kind: "cosine" or "mse".
        frozen_dropout: keep the frozen Q-Former's dropout alive, as the original does by not switching it to
            evaluation: inputs of the quantiser and targets of the reconstruction are noisy then.
        gradient_to_codebook: off where moving averages move the codes.
    """

    embed: float = 5.0
    reconstruction: float = 2.0
    image: float = 0.5
    text: float = 0.5
    reconstruction_kind: str = "cosine"
    frozen_dropout: bool = False
    gradient_to_codebook: bool = True


@flax.struct.dataclass
class Terms:
    """The weighted terms of each picture, and what the pictures were encoded as."""

    embed: Float[Array, " B"]
    reconstruction: Float[Array, " B"]
    image: Float[Array, " B"]
    text: Float[Array, " B"] | None
    encoded: Encoded

    @property
    def named(self) -> dict[str, Array]:
        terms = {"embed": self.embed, "reconstruction": self.reconstruction, "image": self.image, "text": self.text}
        return {name: term for name, term in terms.items() if term is not None}

    @property
    def total(self) -> Float[Array, " B"]:
        return sum(self.named.values())


def terms(
    objective: Objective,
    model: SeedTokenizer,
    variables: Tree,
    image: Float[Array, "B H W 3"],
    image_target: Float[Array, "B E"],
    *,
    branch: TextBranch | None = None,
    text_target: Float[Array, "B T F"] | None = None,
    rngs: dict[str, Array] | None = None,
) -> Terms:
    """Compute every term.

    Args:
        variables: `params` of the tokenizer and, with a `branch`, `text_branch`.
        image_target: CLIP's image embedding, not normalised.
        text_target: states of CLIP's text encoder.
        rngs: keys of the dropout; without them there is none.
    """
    params = variables["params"]
    if not objective.gradient_to_codebook:
        params = {**params, "codebook": jax.lax.stop_gradient(params["codebook"])}
    still = rngs is None

    def forward(model: SeedTokenizer):
        encoded = model.encode(image, deterministic=still or not objective.frozen_dropout)
        up = model.decode_task(encoded.quantized.vectors)
        return encoded, up, model.reconstruct(up), model.project(up, deterministic=still)

    encoded, up, rebuilt, embedding = model.apply({"params": params}, method=forward, rngs=rngs)
    text = None
    if branch is not None:
        states = branch.apply({"params": variables["text_branch"]}, up, deterministic=still, rngs=rngs)
        text = objective.text * squared_distance(states, text_target)
    return Terms(
        embed=objective.embed * encoded.quantized.loss.mean(-1),
        reconstruction=objective.reconstruction
        * reconstruction_loss(objective.reconstruction_kind, rebuilt, encoded.embeddings),
        image=objective.image * squared_distance(embedding, image_target),
        text=text,
        encoded=encoded,
    )
