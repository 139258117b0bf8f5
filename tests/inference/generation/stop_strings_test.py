"""The automaton finds a stop string exactly when the decoded text holds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.sampling_params import ImageConstraint, SamplingParams
from seed_jax.inference.generation.stop_strings import (
    StopStringCompiler,
    StopStringMatcher,
    build_automaton,
    partial_stop_length,
    truncate_at_stop,
)
from tests.inference.generation import cases
from tests.support import golden


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def found_at(tables, stops, ids):
    """Return after how many tokens a stop string has come, or None."""
    (table,), state = tables.compile([stops]).transitions, 0
    for place, token in enumerate(ids):
        state = table[state, token]
        if state == len(table) - 1:
            return place + 1
    return None


def test_it_agrees_with_searching_the_decoded_text(vocabulary):
    tables, generator, hits = StopStringCompiler(vocabulary), np.random.default_rng(0), 0
    stops = ("e", "an", "the d", "\n\n", "a a", "ö")
    for _ in range(100):
        ids = generator.integers(3, vocabulary.num_text, 25).tolist()
        for chosen in [stops[:2], stops[2:], stops[1:3]]:
            # The blank that a text begins with is not part of the decoded text: it decides nothing here.
            texts = [vocabulary.decode(ids[:n]) for n in range(1, 26)]
            expected = next((n for n, text in enumerate(texts, 1) if any(stop in text for stop in chosen)), None)
            assert found_at(tables, chosen, ids) == expected
            hits += expected is not None
    assert hits > 20


def test_the_matcher_on_the_host_finds_what_the_tables_find(vocabulary):
    tables, generator, stops = StopStringCompiler(vocabulary), np.random.default_rng(1), ("e", "an", "the d", "\n\n")
    image = vocabulary.image_ids(range(32))
    places = []
    for _ in range(100):
        ids = generator.integers(3, vocabulary.num_text, 25).tolist()
        ids[generator.integers(10) : 0] = image
        for constraint, begin in ((ImageConstraint(), 0), (ImageConstraint(min_images=1), ids.index(vocabulary.eoi))):
            matcher = StopStringMatcher(vocabulary, stops, constraint, inside_image=False)
            found = next((place + 1 for place, token in enumerate(ids) if matcher.advance(token)), None)
            # Text before a required image does not count.
            expected = found_at(tables, stops, ids[begin:])
            assert found == (None if expected is None else begin + expected)
            places.append(found)
    assert len(set(places)) > 10
    assert not any(StopStringMatcher(vocabulary, (), ImageConstraint(), False).advance(token) for token in image)


def test_strings_across_tokens_and_bytes(vocabulary):
    tables = StopStringCompiler(vocabulary)
    ids = vocabulary.encode("a dog\nUSER: é")
    for stop in ("USER:", "g\nU", "\n", "é", "dog"):
        end = found_at(tables, (stop,), ids)
        assert stop in vocabulary.decode(ids[:end])
        assert stop not in vocabulary.decode(ids[: end - 1])
    assert found_at(tables, ("cat",), ids) is None


def test_an_image_interrupts_a_string(vocabulary):
    tables = StopStringCompiler(vocabulary)
    (a,) = vocabulary.encode("a")  # a blank and the letter
    assert found_at(tables, ("a a",), [a, a]) == 2
    assert found_at(tables, ("a a",), [a, vocabulary.first_code, a]) is None
    assert found_at(tables, ("a a",), [a, vocabulary.eos, a, a]) == 4


def test_overlapping_strings():
    for strings, text, end in [
        (("abab",), "aababab", 5),
        (("abcd", "bc"), "abcd", 3),
        (("aab", "ab"), "aaab", 4),
        (("ab", "xaby"), "xab", 3),
        (("he", "she", "hers"), "ushers", 4),
    ]:
        step, state = build_automaton(strings), 0
        states = []
        for byte in text.encode():
            state = step[state, byte] if state < len(step) else state
            states.append(state)
        assert states.index(len(step)) + 1 == end


def test_rows_without_stop_strings_run_on(vocabulary):
    tables = StopStringCompiler(vocabulary)
    assert tables.compile([(), ()]) is None
    stops = tables.compile([("a",), (), ("b", "c")])
    assert stops.transitions.shape[0] == 4
    stops, state = jax.tree.map(jnp.asarray, stops), jnp.zeros(3, jnp.int32)
    for token in vocabulary.encode("a b c"):
        state = stops.advance(state, jnp.full(3, token))
    assert stops.is_final(state).tolist() == [True, False, True]


def test_cutting_and_holding_back():
    assert truncate_at_stop("one two three", ("two", "ne")) == "o"
    assert truncate_at_stop("one", ("two",)) == "one"
    assert partial_stop_length("say US", ("USER:", "\n")) == 2
    assert partial_stop_length("say USE", ("USER:", "SEX")) == 3
    assert partial_stop_length("say", ("USER:",)) == 0
    with pytest.raises(UserError, match="A stop string is empty"):
        SamplingParams(stop=["a", ""])
    with pytest.raises(UserError, match="more than 1024 bytes"):
        SamplingParams(stop=["a" * 1025])


def test_a_stop_string_and_any_sequence_of_them_are_the_same():
    for stop in ("zebra", ("zebra",), ["zebra"]):
        assert SamplingParams(stop=stop) == SamplingParams(stop=("zebra",))
        assert hash(SamplingParams(stop=stop)) == hash(SamplingParams(stop=("zebra",)))
    prompt = [cases.vocabulary().bos, *cases.vocabulary().encode("a cat")]
    options = {"max_new_tokens": 24, "mode": "text"}
    (whole,) = cases.small().generate([prompt], **options)
    text = "".join(segment.text for segment in whole.segments)
    stop = text[len(text) // 2 :][:2]
    answers = [cases.small().generate([prompt], stop=given, **options)[0] for given in (stop, [stop], (stop,))]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0].finish_reason == "stop"
    assert "".join(segment.text for segment in answers[0].segments) == text[: text.index(stop)]


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(UserError, match="half a surrogate pair"):
        SamplingParams(stop="\ud83d")
