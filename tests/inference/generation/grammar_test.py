"""The grammar's masks as literals, and every random walk through them well-formed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.grammar import Grammar, ImageRule, Rules
from tests.support import golden

# 0 <unk>/padding, 1 <s>, 2 </s>, 3-5 text, 6-8 codes, 9 <img>, 10 </img>; images of 2 codes.
GRAMMAR = Grammar(vocab_size=11, boi=9, eoi=10, eos=2, first_code=6, num_codes=3, codes_per_image=2, never=(0, 1))
TEXT, CODES, BOI, EOI, EOS = {3, 4, 5}, {6, 7, 8}, 9, 10, 2
RULES = {name: ImageRule.of(name) for name in ("free", "image", "some", "text", "none")}
RULES |= {f"exactly {n}": ImageRule.of("free", n) for n in (0, 1, 2)} | {"image, exactly 2": ImageRule.of("image", 2)}


def allowed_after(prompt: list[int], remaining: int, rule: str, answer: tuple[int, ...] = ()) -> set[int]:
    rules = Rules.of([RULES[rule]])
    state = GRAMMAR.start(jnp.array([prompt]), jnp.array([len(prompt)]))
    for token in answer:
        state = GRAMMAR.advance(state, jnp.array([token]))
    return set(np.flatnonzero(GRAMMAR.allowed(rules, state, jnp.array([remaining]))[0]).tolist())


@pytest.mark.parametrize(
    ("prompt", "remaining", "rule", "expected"),
    [
        ([1, 3], 9, "free", TEXT | {BOI, EOS}),
        ([1, 3], 4, "free", TEXT | {BOI, EOS}),  # <img>, 2 codes and </img> just fit
        ([1, 3], 3, "free", TEXT | {EOS}),
        ([1, 3], 9, "text", TEXT | {EOS}),
        ([1, 3], 9, "image", {BOI}),
        ([1, 3], 9, "none", set(range(11))),
        ([1, 3], 9, "some", TEXT | {BOI}),
        ([1, 3], 5, "some", TEXT | {BOI}),
        ([1, 3], 4, "some", {BOI}),  # the last opportunity
        ([1, 3], 9, "exactly 0", TEXT | {EOS}),
        ([1, 3], 9, "exactly 2", TEXT | {BOI}),
        ([1, 3], 8, "exactly 2", {BOI}),
        ([1, 3], 9, "image, exactly 2", {BOI}),
        ([1, 3, BOI], 9, "free", CODES),
        ([1, 3, BOI, 6], 9, "free", CODES),
        ([1, 3, BOI, 6, 8], 9, "free", {EOI}),
        ([1, 3, BOI, 6, 8, EOI], 9, "free", TEXT | {BOI, EOS}),
        ([1, BOI, 6, 8, EOI, BOI, 7], 9, "text", CODES),  # an image that the prompt began is ended
        ([1, BOI, 6, 8, EOI, 4], 9, "image", {BOI}),
    ],
)
def test_what_may_follow(prompt, remaining, rule, expected):
    assert allowed_after(prompt, remaining, rule) == expected


@pytest.mark.parametrize(
    ("rule", "remaining", "expected"),
    [
        ("image", 9, TEXT | {BOI, EOS}),
        ("some", 9, TEXT | {BOI, EOS}),
        ("exactly 1", 9, TEXT | {EOS}),
        ("exactly 2", 9, TEXT | {BOI}),
        ("exactly 2", 4, {BOI}),
        ("image, exactly 2", 9, TEXT | {BOI}),
    ],
)
def test_what_may_follow_the_first_image(rule, remaining, expected):
    assert allowed_after([1, 3], remaining, rule, (BOI, 6, 7, EOI)) == expected


def test_padding_behind_a_prompt_is_not_read():
    tokens = jnp.array([[1, 3, BOI, 6], [1, 3, BOI, 6]])
    state = GRAMMAR.start(tokens, jnp.array([4, 2]))
    assert state.inside.tolist() == [True, False]
    assert state.codes.tolist() == [1, 0]


def test_an_answer_may_end_outside_images_with_nothing_owed():
    rules = Rules.of([RULES[name] for name in ("free", "some", "none", "exactly 2")])
    state = GRAMMAR.start(jnp.array([[1, 3]] * 4), jnp.array([2] * 4))
    assert GRAMMAR.may_end(rules, state).tolist() == [True, False, True, False]
    state = GRAMMAR.advance(state, jnp.array([BOI] * 4))
    assert GRAMMAR.may_end(rules, state).tolist() == [False, False, True, False]
    for token in (6, 7, EOI):
        state = GRAMMAR.advance(state, jnp.array([token] * 4))
    assert GRAMMAR.may_end(rules, state).tolist() == [True, True, True, False]


def test_needs():
    for prompt, expected in [
        ([1, 3, 3, 3], {"free": 0, "text": 0, "image": 4, "some": 4, "exactly 2": 8, "none": 0}),
        ([1, 3, BOI, 6], {"free": 2, "text": 2, "image": 6, "some": 6, "exactly 2": 10, "none": 0}),
        ([1, BOI, 6, 7, EOI], {"free": 0, "image": 4}),
    ]:
        assert {name: GRAMMAR.need(RULES[name], prompt) for name in expected} == expected


def test_every_random_walk_is_well_formed():
    rows, budget = 5000, 23
    names = np.random.default_rng(1).choice([name for name in RULES if name != "none"], rows)
    rules = jax.tree.map(jnp.asarray, Rules.of([RULES[name] for name in names]))
    needs = np.array([GRAMMAR.need(RULES[name], [1]) for name in names])
    budgets = jnp.asarray(np.random.default_rng(0).integers(np.maximum(needs, 1), budget + 1))

    def step(carry, inputs):
        index, key = inputs
        state, done = carry
        mask = GRAMMAR.allowed(rules, state, budgets - index)
        token = jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf))
        token = jnp.where(done, EOS, token)
        return (GRAMMAR.advance(state, token), done | (token == EOS) | (index + 1 >= budgets)), token

    start = GRAMMAR.start(jnp.ones((rows, 1), jnp.int32), jnp.ones(rows, jnp.int32))
    keys = jax.random.split(jax.random.key(0), budget)
    walk = jax.jit(functools.partial(jax.lax.scan, step))
    _, tokens = walk((start, jnp.zeros(rows, bool)), (jnp.arange(budget), keys))
    for row, limit, name in zip(np.asarray(tokens).T.tolist(), budgets.tolist(), names, strict=True):
        row, images = row[:limit], 0
        row = row[: row.index(EOS)] if EOS in row else row
        assert not {0, 1} & set(row)
        assert not RULES[name].now or row[0] == BOI
        while BOI in row:
            place = row.index(BOI)
            assert set(row[place + 1 : place + 3]) <= CODES
            assert row[place + 3] == EOI
            del row[place : place + 4]
            images += 1
        assert set(row) <= TEXT
        assert RULES[name].least <= images <= RULES[name].most


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def test_ids_come_from_the_vocabulary(vocabulary):
    grammar = Grammar.of(vocabulary)
    assert (grammar.boi, grammar.eoi, grammar.first_code, grammar.num_codes) == (828, 829, 700, 128)
    assert (grammar.vocab_size, grammar.eos, grammar.never, grammar.tokens_per_image) == (830, 2, (0, 1), 34)


def test_impossible_rules():
    with pytest.raises(UserError, match="Unknown grammar mode 'both': expected one of free, image, some, text, none"):
        ImageRule.of("both")
    for mode, count in [("text", 1), ("none", 0), ("some", 2), ("image", 0), ("free", -1)]:
        with pytest.raises(UserError, match="does not go with the grammar mode"):
            ImageRule.of(mode, count)
