"""What may be generated next, so that every image is `<img>`, its codes and `</img>`; pure functions on arrays.

Outside an image: text, `<img>` and the end of the sequence. Inside: exactly the image's number of codes, then `</img>`.
An image that would not fit into what may still be generated is not begun, and one that is owed is begun in time
(spec I.C.2). What a row may and must draw are arrays, so that rows of one batch may differ.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.typing import Leaf

MODES = ("free", "image", "some", "text", "none")
UNLIMITED = 2**20


@dataclasses.dataclass(frozen=True)
class ImageRule:
    """How many images one answer has.

    Attributes:
        least, most: images of the answer; one that the prompt began does not count.
        now: the answer begins with an image.
        enforced: without it anything may follow anything, as in the original.
    """

    least: int = 0
    most: int = UNLIMITED
    now: bool = False
    enforced: bool = True

    @classmethod
    def of(cls, mode: str, count: int | None = None) -> "ImageRule":
        """Return the rule called `mode`.

        Args:
            mode: "free" text and images; "image" begin with an image; "some" at least one image; "text" no image;
                "none" no grammar.
            count: exactly so many images, in the modes "free" and "image".
        """
        if mode not in MODES:
            raise UserError(f"Unknown grammar mode {mode!r}: expected one of {', '.join(MODES)}.")
        if count is not None:
            if mode not in ("free", "image") or count < (mode == "image"):  # a first image is one
                raise UserError(f"An exact number of images ({count}) does not go with the grammar mode {mode!r}.")
            return cls(least=count, most=count, now=mode == "image")
        return {
            "free": cls(),
            "image": cls(least=1, now=True),
            "some": cls(least=1),
            "text": cls(most=0),
            "none": cls(enforced=False),
        }[mode]


@flax.struct.dataclass
class Rules:
    """An `ImageRule` for each row."""

    least: Int[Leaf, " B"]
    most: Int[Leaf, " B"]
    now: Bool[Leaf, " B"]
    enforced: Bool[Leaf, " B"]

    @classmethod
    def of(cls, rules: Sequence[ImageRule]) -> "Rules":
        names = [field.name for field in dataclasses.fields(ImageRule)]
        columns = {name: [getattr(rule, name) for rule in rules] for name in names}
        kinds = {"least": np.int32, "most": np.int32, "now": bool, "enforced": bool}
        return cls(**{name: np.asarray(columns[name], kinds[name]) for name in names})


@flax.struct.dataclass
class GrammarState:
    """For each row: whether it is inside an image, how many codes that image has, how many images were begun."""

    inside: Bool[Leaf, " B"]
    codes: Int[Leaf, " B"]
    images: Int[Leaf, " B"]


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The ids of one vocabulary; hashable, so that a compiled program can be chosen by it."""

    vocab_size: int
    boi: int
    eoi: int
    eos: int
    first_code: int
    num_codes: int
    codes_per_image: int
    never: tuple[int, ...]  # padding, <s>, <unk>

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "Grammar":
        """Take the ids from a vocabulary."""
        names = ("boi", "eoi", "eos", "first_code", "num_codes", "codes_per_image")
        never = tuple(sorted({vocabulary.pad, vocabulary.bos, vocabulary.unk}))
        ids = {name: int(getattr(vocabulary, name)) for name in names}
        return cls(vocab_size=vocabulary.size, never=never, **ids)

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

    def need(self, rule: ImageRule, prompt: Sequence[int]) -> int:
        """Return how many tokens must at least follow: the rest of an image that was begun, and the images owed."""
        if not rule.enforced:
            return 0
        backwards = list(prompt)[::-1]
        begun, ended = (backwards.index(t) if t in backwards else len(backwards) for t in (self.boi, self.eoi))
        rest = max(self.codes_per_image - begun, 0) + 1 if begun < ended else 0
        return rest + rule.least * self.tokens_per_image

    def allowed(self, rules: Rules, state: GrammarState, remaining: Int[Array, " B"]) -> Bool[Array, "B V"]:
        """Return which tokens may come next.

        Args:
            remaining: how many tokens may still be generated, the next one included; at least `need`.
        """
        token = jnp.arange(self.vocab_size)[None]
        is_code = (token >= self.first_code) & (token < self.first_code + self.num_codes)
        is_boi, is_eoi, is_eos = token == self.boi, token == self.eoi, token == self.eos
        is_text = ~(is_code | is_boi | is_eoi | is_eos | jnp.isin(token, jnp.asarray(self.never)))
        full = (state.codes >= self.codes_per_image)[:, None]
        inside = jnp.where(full, is_eoi, is_code)
        owed = jnp.maximum(rules.least - state.images, 0)
        first = rules.now & (state.images == 0)
        text = (remaining > owed * self.tokens_per_image) & ~first
        image = (state.images < rules.most) & (remaining >= jnp.maximum(owed, 1) * self.tokens_per_image)
        end = (owed == 0) & ~first
        outside = (is_text & text[:, None]) | (is_boi & image[:, None]) | (is_eos & end[:, None])
        return jnp.where(state.inside[:, None], inside, outside) | ~rules.enforced[:, None]

    def may_end(self, rules: Rules, state: GrammarState) -> Bool[Array, " B"]:
        """Return whether an answer may end here: outside an image, with nothing owed."""
        return ~rules.enforced | (~state.inside & (state.images >= rules.least))

    def advance(self, state: GrammarState, token: Int[Array, " B"]) -> GrammarState:
        """Return the state after one more token a row."""
        begins, ends = token == self.boi, token == self.eoi
        inside = (state.inside | begins) & ~ends
        codes = jnp.where(begins | ~inside, 0, state.codes + 1)
        return GrammarState(inside=inside, codes=codes, images=state.images + begins)
