"""The image grammar: which tokens may come next, so that every image is `<img>`, its codes and `</img>`.

Outside an image: text, `<img>` and EOS. Inside: exactly the image's number of codes, then `</img>`. An image that would
not fit into the remaining tokens is not begun, and a required image is begun in time (spec I.C.2). All functions are
pure functions on arrays; the constraints are arrays over the batch, so that requests of one batch may differ.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.inference.generation.sampling_params import ImageConstraint
from seed_jax.typing import Leaf


@flax.struct.dataclass
class BatchedImageConstraints:
    """The `ImageConstraint`s of a batch."""

    min_images: Int[Leaf, " B"]
    max_images: Int[Leaf, " B"]
    image_first: Bool[Leaf, " B"]
    enforced: Bool[Leaf, " B"]

    @classmethod
    def stack(cls, constraints: Sequence[ImageConstraint]) -> "BatchedImageConstraints":
        def column(name: str, dtype: Any) -> Any:
            return np.array([getattr(constraint, name) for constraint in constraints], dtype)

        return cls(
            min_images=column("min_images", np.int32),
            max_images=column("max_images", np.int32),
            image_first=column("image_first", bool),
            enforced=column("enforced", bool),
        )


@flax.struct.dataclass
class GrammarState:
    """Position of each sequence in the grammar; or of several places of each.

    Attributes:
        inside_image: whether the sequence is inside an image.
        codes_emitted: codes of the current image so far.
        images_begun: images begun in the answer.
    """

    inside_image: Bool[Leaf, "*B"]
    codes_emitted: Int[Leaf, "*B"]
    images_begun: Int[Leaf, "*B"]


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The grammar for the token ids of one vocabulary; hashable, to be a static argument of compiled programs.

    Attributes:
        forbidden_tokens: ids that are never generated: padding, `<s>`, `<unk>`.
    """

    vocab_size: int
    boi: int
    eoi: int
    eos: int
    first_code: int
    num_codes: int
    codes_per_image: int
    forbidden_tokens: tuple[int, ...]

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> "Grammar":
        return cls(
            vocab_size=vocabulary.size,
            boi=vocabulary.boi,
            eoi=vocabulary.eoi,
            eos=vocabulary.eos,
            first_code=vocabulary.first_code,
            num_codes=vocabulary.num_codes,
            codes_per_image=vocabulary.codes_per_image,
            forbidden_tokens=vocabulary.forbidden_tokens,
        )

    @property
    def tokens_per_image(self) -> int:
        return self.codes_per_image + 2

    def initial_state(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]) -> GrammarState:
        """Return the state after the prompts; an image that a prompt began is continued."""
        position = jnp.arange(tokens.shape[1])[None]
        valid = position < lengths[:, None]

        def last(token: int) -> Int[Array, " B"]:
            return jnp.max(jnp.where(valid & (tokens == token), position, -1), axis=1)

        begin = last(self.boi)
        inside = begin > last(self.eoi)
        zeros = jnp.zeros(tokens.shape[0], jnp.int32)
        emitted = jnp.where(inside, lengths - begin - 1, zeros).astype(jnp.int32)
        return GrammarState(inside_image=inside, codes_emitted=emitted, images_begun=zeros)

    def state_after(self, prompt: Sequence[int]) -> GrammarState:
        """Return the state after one prompt as arrays of length 1, computed on the host."""
        since_boi, since_eoi = _distance_from_end(prompt, self.boi), _distance_from_end(prompt, self.eoi)
        inside = since_boi < since_eoi
        flag: Any = np.array([inside])
        emitted: Any = np.array([since_boi if inside else 0], np.int32)
        return GrammarState(inside_image=flag, codes_emitted=emitted, images_begun=np.zeros_like(emitted))

    def min_new_tokens(self, constraint: ImageConstraint, prompt: Sequence[int]) -> int:
        """Return the fewest tokens that satisfy the grammar: the rest of the prompt's image and the required images."""
        if not constraint.enforced:
            return 0
        since_boi, since_eoi = _distance_from_end(prompt, self.boi), _distance_from_end(prompt, self.eoi)
        rest = max(self.codes_per_image - since_boi, 0) + 1 if since_boi < since_eoi else 0
        return rest + constraint.min_images * self.tokens_per_image

    def allowed_tokens(
        self, constraints: BatchedImageConstraints, state: GrammarState, remaining: Int[Array, " B"]
    ) -> Bool[Array, "B V"]:
        """Return the mask of tokens that may come next.

        Args:
            constraints: image constraints of the batch.
            state: present state.
            remaining: how many tokens may still be generated, the next one included; at least `min_new_tokens`.
        """
        token = jnp.arange(self.vocab_size)[None]
        is_code = (token >= self.first_code) & (token < self.first_code + self.num_codes)
        is_boi, is_eoi, is_eos = token == self.boi, token == self.eoi, token == self.eos
        is_text = ~(is_code | is_boi | is_eoi | is_eos | jnp.isin(token, jnp.asarray(self.forbidden_tokens)))
        complete = (state.codes_emitted >= self.codes_per_image)[:, None]
        inside = jnp.where(complete, is_eoi, is_code)
        text, image, end = self._allowed_outside(constraints, state, remaining)
        outside = (is_text & text[:, None]) | (is_boi & image[:, None]) | (is_eos & end[:, None])
        return jnp.where(state.inside_image[:, None], inside, outside) | ~constraints.enforced[:, None]

    def must_begin_image(
        self, constraints: BatchedImageConstraints, state: GrammarState, remaining: Int[Array, " B"]
    ) -> Bool[Array, " B"]:
        """Return whether `<img>` is the only token that may come next; arguments as in `allowed_tokens`."""
        text, image, end = self._allowed_outside(constraints, state, remaining)
        return constraints.enforced & ~state.inside_image & image & ~text & ~end

    def _allowed_outside(
        self, constraints: BatchedImageConstraints, state: GrammarState, remaining: Int[Array, " B"]
    ) -> tuple[Bool[Array, " B"], Bool[Array, " B"], Bool[Array, " B"]]:
        """Return whether text, `<img>` and EOS may come next in sequences outside an image."""
        required = jnp.maximum(constraints.min_images - state.images_begun, 0)
        must_begin = constraints.image_first & (state.images_begun == 0)
        text = (remaining > required * self.tokens_per_image) & ~must_begin
        fits = remaining >= jnp.maximum(required, 1) * self.tokens_per_image
        image = (state.images_begun < constraints.max_images) & fits
        end = (required == 0) & ~must_begin
        return text, image, end

    def can_finish(self, constraints: BatchedImageConstraints, state: GrammarState) -> Bool[Array, " B"]:
        """Return whether each answer may end here: outside an image, with all required images generated."""
        done = ~state.inside_image & (state.images_begun >= constraints.min_images)
        return ~constraints.enforced | done

    def advance(self, state: GrammarState, token: Int[Array, " B"]) -> GrammarState:
        """Return the state after one more token of each sequence."""
        is_boi, is_eoi = token == self.boi, token == self.eoi
        inside = (state.inside_image | is_boi) & ~is_eoi
        emitted = jnp.where(is_boi | ~inside, 0, state.codes_emitted + 1)
        return GrammarState(inside_image=inside, codes_emitted=emitted, images_begun=state.images_begun + is_boi)


def _distance_from_end(ids: Sequence[int], token: int) -> int:
    """Return how many ids follow the last occurrence of `token`; len(ids) if it does not occur."""
    backwards = list(ids)[::-1]
    return backwards.index(token) if token in backwards else len(backwards)
