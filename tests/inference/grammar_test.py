"""The grammar's masks as literals, and every random walk through them well-formed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.grammar import Grammar
from tests import golden

# 0 <unk>/padding, 1 <s>, 2 </s>, 3-5 text, 6-8 codes, 9 <img>, 10 </img>; images of 2 codes.
GRAMMAR = Grammar(
    vocab_size=11, boi=9, eoi=10, eos=2, first_code=6, num_codes=3, codes_per_image=2, never=(0, 1), mode="free"
)
TEXT, CODES, BOI, EOI, EOS = {3, 4, 5}, {6, 7, 8}, 9, 10, 2


def allowed_after(prompt: list[int], remaining: int, mode: str = "free") -> set[int]:
    grammar = dataclasses.replace(GRAMMAR, mode=mode)
    state = grammar.start(jnp.array([prompt]), jnp.array([len(prompt)]))
    return set(np.flatnonzero(grammar.allowed(state, jnp.array([remaining]))[0]).tolist())


@pytest.mark.parametrize(
    ("prompt", "remaining", "mode", "expected"),
    [
        ([1, 3], 9, "free", TEXT | {BOI, EOS}),
        ([1, 3], 4, "free", TEXT | {BOI, EOS}),  # <img>, 2 codes and </img> just fit
        ([1, 3], 3, "free", TEXT | {EOS}),
        ([1, 3], 9, "text", TEXT | {EOS}),
        ([1, 3], 9, "image", {BOI}),
        ([1, 3], 9, "none", set(range(11))),
        ([1, 3, BOI], 9, "free", CODES),
        ([1, 3, BOI, 6], 9, "free", CODES),
        ([1, 3, BOI, 6, 8], 9, "free", {EOI}),
        ([1, 3, BOI, 6, 8, EOI], 9, "free", TEXT | {BOI, EOS}),
        ([1, BOI, 6, 8, EOI, BOI, 7], 9, "text", CODES),  # an image that the prompt began is ended
        ([1, BOI, 6, 8, EOI, 4], 9, "image", {BOI}),
    ],
)
def test_what_may_follow(prompt, remaining, mode, expected):
    assert allowed_after(prompt, remaining, mode) == expected


def test_padding_behind_a_prompt_is_not_read():
    tokens = jnp.array([[1, 3, BOI, 6], [1, 3, BOI, 6]])
    state = GRAMMAR.start(tokens, jnp.array([4, 2]))
    assert state.inside.tolist() == [True, False]
    assert state.codes.tolist() == [1, 0]


def test_an_image_is_forced_once():
    grammar = dataclasses.replace(GRAMMAR, mode="image")
    state = grammar.start(jnp.array([[1, 3]]), jnp.array([2]))
    for token in (BOI, 6, 7, EOI):
        assert grammar.allowed(state, jnp.array([9]))[0, token]
        state = grammar.advance(state, jnp.array([token]))
    assert set(np.flatnonzero(grammar.allowed(state, jnp.array([9]))[0]).tolist()) == TEXT | {BOI, EOS}


def test_needs():
    prompts, lengths = jnp.array([[1, 3, 3, 3], [1, 3, BOI, 6]]), jnp.array([4, 4])
    for mode, expected in [("free", [0, 2]), ("image", [4, 6]), ("text", [0, 2])]:
        grammar = dataclasses.replace(GRAMMAR, mode=mode)
        assert grammar.need(grammar.start(prompts, lengths)).tolist() == expected


@pytest.mark.parametrize("mode", ["free", "image", "text"])
def test_every_random_walk_is_well_formed(mode):
    rows, budget = 5000, 23
    grammar = dataclasses.replace(GRAMMAR, mode=mode)
    budgets = jnp.asarray(np.random.default_rng(0).integers(4, budget + 1, rows))

    def step(carry, inputs):
        index, key = inputs
        state, done = carry
        mask = grammar.allowed(state, budgets - index)
        token = jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf))
        token = jnp.where(done, EOS, token)
        return (grammar.advance(state, token), done | (token == EOS) | (index + 1 >= budgets)), token

    start = grammar.start(jnp.ones((rows, 1), jnp.int32), jnp.ones(rows, jnp.int32))
    keys = jax.random.split(jax.random.key(0), budget)
    walk = jax.jit(functools.partial(jax.lax.scan, step))
    _, tokens = walk((start, jnp.zeros(rows, bool)), (jnp.arange(budget), keys))
    images = 0
    for row, limit in zip(np.asarray(tokens).T.tolist(), budgets.tolist(), strict=True):
        row = row[:limit]
        row = row[: row.index(EOS)] if EOS in row else row
        assert not {0, 1} & set(row)
        assert mode != "image" or row[0] == BOI
        while BOI in row:
            place = row.index(BOI)
            assert set(row[place + 1 : place + 3]) <= CODES
            assert row[place + 3] == EOI
            del row[place : place + 4]
            images += 1
        assert set(row) <= TEXT
    assert (images > 0) == (mode != "text")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def test_ids_come_from_the_vocabulary(vocabulary):
    grammar = Grammar.of(vocabulary)
    assert (grammar.boi, grammar.eoi, grammar.first_code, grammar.num_codes) == (828, 829, 700, 128)
    assert (grammar.vocab_size, grammar.eos, grammar.never, grammar.tokens_per_image) == (830, 2, (0, 1), 34)


def test_unknown_mode(vocabulary):
    with pytest.raises(UserError, match="Unknown grammar mode 'both': expected one of free, image, text, none"):
        Grammar.of(vocabulary, "both")
