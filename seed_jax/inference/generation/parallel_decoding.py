"""Parallel decoding of the codes of an image: Jacobi decoding, with the sampler's own random numbers.

All codes of an image are guessed (the draft), and one forward pass over the window [last token, draft] scores every
position. Sampling by Gumbel-max is deterministic once the noise is fixed, and the noise of a token depends on the
sequence's seed and the token's number only. So the tokens chosen from these scores are those of sequential decoding up
to and including the first one that differs from the draft. These are accepted, at least one in every pass; the others
are the next draft. Sources: Santilli et al., "Accelerating Transformer Inference for Translation via Parallel Decoding"
(2023), and for sampling Wiggers and Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models" (2020).
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.grammar import BatchedImageConstraints, Grammar, GrammarState
from seed_jax.typing import Leaf


@flax.struct.dataclass
class Window:
    """Consecutive tokens of each sequence that one forward pass scores; W = 1 without a draft.

    Attributes:
        tokens: the last token, then the draft of its successors.
        valid: which of them exist: the first one, and in sequences that are inside an image or must begin one, the rest
            of the image.
        grammar: state after each token if the draft is right.
        progress: tokens of the image up to the last token, `Grammar.tokens_per_image` + 1 where no image is drafted.
    """

    tokens: Int[Leaf, "B W"]
    valid: Bool[Leaf, "B W"]
    grammar: GrammarState  # of arrays [B, W]
    progress: Int[Leaf, " B"]

    def count_accepted(self, choices: Int[Array, "B W"]) -> Int[Array, " B"]:
        """Return how many chosen tokens are those of sequential decoding: the first, and one per right draft token."""
        matches = self.valid[:, 1:] & (choices[:, :-1] == self.tokens[:, 1:])
        return 1 + jnp.cumprod(matches, axis=1, dtype=jnp.int32).sum(1)

    def next_draft(self, choices: Int[Array, "B W"], draft: Int[Array, "B Q"]) -> Int[Array, "B Q"]:
        """Return the draft of the same image after this window: what was chosen, in place of what was guessed."""
        position = jnp.arange(draft.shape[1])[None] + 1 - self.progress[:, None]
        chosen = jnp.take_along_axis(choices, jnp.clip(position, 0, choices.shape[1] - 1), axis=1)
        return jnp.where((position >= 0) & (position < choices.shape[1]), chosen, draft)


def single_token_window(token: Int[Array, " B"], grammar: Grammar, state: GrammarState) -> Window:
    """Return the window of the last token alone: sequential decoding."""
    return Window(
        tokens=token[:, None],
        valid=jnp.ones((len(token), 1), bool),
        grammar=jax.tree.map(lambda leaf: leaf[:, None], state),
        progress=jnp.full_like(token, grammar.tokens_per_image + 1),
    )


def image_window(
    token: Int[Array, " B"],
    draft: Int[Array, "B Q"],
    grammar: Grammar,
    state: GrammarState,
    progress: Int[Array, " B"],
) -> Window:
    """Return the window of the last token and the rest of the image that follows it.

    Args:
        token: last token of each sequence.
        draft: token ids of the codes of its image.
        grammar: of the model.
        state: after the last token.
        progress: see `image_progress`.
    """
    size, batch_size = grammar.tokens_per_image, len(token)
    column = [jnp.full((batch_size, 1), end, jnp.int32) for end in (grammar.boi, grammar.eoi)]
    image = jnp.concatenate([column[0], draft, column[1]], axis=1)
    offset = jnp.arange(size)[None]
    after = progress[:, None] + offset  # tokens of the image up to each token of the window
    follows = (offset > 0) & (after <= size)
    drafted = jnp.take_along_axis(image, jnp.clip(after - 1, 0, size - 1), axis=1)
    inside = after < size
    states = GrammarState(
        inside_image=jnp.where(offset > 0, inside, state.inside_image[:, None]),
        codes_emitted=jnp.where(offset > 0, jnp.where(inside, after - 1, 0), state.codes_emitted[:, None]),
        images_begun=state.images_begun[:, None] + ((progress == 0)[:, None] & (offset > 0)),
    )
    return Window(
        tokens=jnp.where(offset > 0, drafted, token[:, None]),
        valid=(offset == 0) | follows,
        grammar=states,
        progress=progress,
    )


def image_progress(
    grammar: Grammar,
    constraints: BatchedImageConstraints,
    state: GrammarState,
    remaining: Int[Array, " B"],
    done: Bool[Array, " B"],
) -> Int[Array, " B"]:
    """Return how many tokens of the image that follows each sequence's last token are there already.

    Args:
        grammar: of the model.
        constraints: image constraints of the batch.
        state: after the last token.
        remaining: how many tokens may still be generated.
        done: finished sequences.

    Returns:
        1 to `Grammar.tokens_per_image` - 1 inside an image; 0 where `<img>` is the only token that may come next;
        `Grammar.tokens_per_image` + 1 in other sequences, where nothing is drafted.
    """
    not_drafted = grammar.tokens_per_image + 1
    begins = grammar.must_begin_image(constraints, state, remaining)
    progress = jnp.where(state.inside_image, state.codes_emitted + 1, jnp.where(begins, 0, not_drafted))
    return jnp.where(constraints.enforced & ~done, progress, not_drafted)


def first_draft(prompt: Sequence[int], vocabulary: Vocabulary, draft_codes: Sequence[int] | None = None) -> list[int]:
    """Return the first draft of a request's images, as token ids: what an edit changes little, else what is frequent.

    Args:
        prompt: token ids; the codes of its last complete image are the draft.
        vocabulary: of the model.
        draft_codes: the draft of prompts without an image; by default code 0 everywhere.
    """
    count, ids = vocabulary.codes_per_image, list(prompt)
    for start in range(len(ids) - count - 2, -1, -1):
        codes = ids[start + 1 : start + 1 + count]
        delimited = ids[start] == vocabulary.boi and ids[start + 1 + count] == vocabulary.eoi
        if delimited and all(vocabulary.code_of(token) is not None for token in codes):
            return codes
    return [vocabulary.first_code + code for code in draft_codes or [0] * count]


def check_draft_codes(codes: Sequence[int], vocabulary: Vocabulary, where: str = "draft_codes") -> tuple[int, ...]:
    """Return draft codes after checking them.

    Raises:
        UserError: they are not as many codes as an image of this vocabulary has.
    """
    count, limit = vocabulary.codes_per_image, vocabulary.num_codes
    integers = isinstance(codes, Sequence) and all(type(code) is int for code in codes)
    if not integers or len(codes) != count or not 0 <= min(codes) <= max(codes) < limit:
        raise UserError(
            f"{where} must be a list of {count} codes from 0 to {limit - 1}, as this model's images have: make it with "
            "`seed-jax data draft-codes`."
        )
    return tuple(codes)
