"""What may be generated next, so that every image is `<img>`, its codes and `</img>`; pure functions on arrays.

Outside an image: text, `<img>` and the end of the sequence. Inside: exactly the image's number of codes, then `</img>`.
An image that would not fit into what may still be generated is not begun (spec I.C.2).
"""

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError

MODES = ("free", "image", "text", "none")


@flax.struct.dataclass
class GrammarState:
    """For each row: whether it is inside an image, how many codes that image has, how many images were begun."""

    inside: Bool[Array, " B"]
    codes: Int[Array, " B"]
    images: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Rules over the ids of one vocabulary; hashable, so that a compiled program can be chosen by it.

    Attributes:
        mode: "free" text and images; "image" begins with an image; "text" only; "none" anything at all, as the
            original does it.
    """

    vocab_size: int
    boi: int
    eoi: int
    eos: int
    first_code: int
    num_codes: int
    codes_per_image: int
    never: tuple[int, ...]  # padding, <s>, <unk>
    mode: str = "free"

    @classmethod
    def of(cls, vocabulary: Vocabulary, mode: str = "free") -> "Grammar":
        """Take the ids from a vocabulary."""
        if mode not in MODES:
            raise UserError(f"Unknown grammar mode {mode!r}: expected one of {', '.join(MODES)}.")
        names = ("boi", "eoi", "eos", "first_code", "num_codes", "codes_per_image")
        never = tuple(sorted({vocabulary.pad, vocabulary.bos, vocabulary.unk}))
        ids = {name: int(getattr(vocabulary, name)) for name in names}
        return cls(vocab_size=vocabulary.size, never=never, mode=mode, **ids)

    @property
    def tokens_per_image(self) -> int:
        return self.codes_per_image + 2

    def start(self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]) -> GrammarState:
        """Return the state after prompts: a prompt may end inside an image, which is then continued."""
        place = jnp.arange(tokens.shape[1])[None]
        within = place < lengths[:, None]

        def last(token: int) -> Int[Array, " B"]:
            return jnp.max(jnp.where(within & (tokens == token), place, -1), axis=1)

        begun = last(self.boi)
        inside = begun > last(self.eoi)
        zero = jnp.zeros(tokens.shape[0], jnp.int32)
        codes = jnp.where(inside, lengths - begun - 1, zero).astype(jnp.int32)
        return GrammarState(inside=inside, codes=codes, images=zero)

    def need(self, state: GrammarState) -> Int[Array, " B"]:
        """Return how many tokens must at least follow: the rest of an open image, or the image that is asked for."""
        rest = jnp.where(state.inside, self.codes_per_image - state.codes + 1, 0)
        wanted = self.tokens_per_image if self.mode == "image" else 0
        return rest + jnp.where(state.images == 0, wanted, 0)

    def allowed(self, state: GrammarState, remaining: Int[Array, " B"]) -> Bool[Array, "B V"]:
        """Return which tokens may come next.

        Args:
            remaining: how many tokens may still be generated, the next one included.
        """
        token = jnp.arange(self.vocab_size)[None]
        if self.mode == "none":
            return jnp.ones((state.inside.shape[0], self.vocab_size), bool)
        is_code = (token >= self.first_code) & (token < self.first_code + self.num_codes)
        is_boi, is_eoi = token == self.boi, token == self.eoi
        never = jnp.isin(token, jnp.asarray(self.never))
        full = (state.codes >= self.codes_per_image)[:, None]
        inside = jnp.where(full, is_eoi, is_code)
        fits = (remaining >= self.tokens_per_image)[:, None]
        outside = ~(is_code | is_eoi | never) & (~is_boi | (fits if self.mode != "text" else False))
        if self.mode == "image":
            outside = jnp.where((state.images == 0)[:, None], is_boi, outside)
        return jnp.where(state.inside[:, None], inside, outside)

    def advance(self, state: GrammarState, token: Int[Array, " B"]) -> GrammarState:
        """Return the state after one more token a row."""
        begins, ends = token == self.boi, token == self.eoi
        inside = (state.inside | begins) & ~ends
        codes = jnp.where(begins | ~inside, 0, state.codes + 1)
        return GrammarState(inside=inside, codes=codes, images=state.images + begins)
