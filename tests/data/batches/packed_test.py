import dataclasses
import json
import pickle
from collections import Counter

import grain
import numpy as np
import pytest

from seed_jax.data import templates
from seed_jax.data.batches import packed
from seed_jax.data.batches.packed import PackedBatches, packed_batches
from seed_jax.data.batches.packing import packing_stats
from seed_jax.data.batches.record_stream import MixtureComponent, RecordStream
from seed_jax.data.batches.resume_state import dropped, has_ended, merge_states
from seed_jax.data.shards.records import Record
from seed_jax.data.templates.renderer import Renderer
from seed_jax.data.templates.sample import RenderedSample
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from tests.data.batches import mixtures
from tests.support import golden

ROWS, LENGTH = 8, 96


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    one = mixtures.write(root / "one", map(mixtures.captioned, range(50)))
    two = mixtures.write(root / "two", map(mixtures.captioned, range(100, 111)))
    return [MixtureComponent(one, mixtures.render, 3), MixtureComponent(two, mixtures.render_pieces, 1.5)]


def batches(mixture, host=0, hosts=1, seed=7, **changes):
    settings = {"batch_size": ROWS, "sequence_length": LENGTH, "look_ahead": 4} | changes
    share = settings["batch_size"] // hosts
    return PackedBatches(RecordStream(mixture, seed), batch_indices=range(host * share, (host + 1) * share), **settings)


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def joined(shares):
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}


def segments(batch):
    for tokens, ids in zip(batch["tokens"], batch["segment_ids"], strict=True):
        yield from (tuple(tokens[ids == segment].tolist()) for segment in range(1, ids.max() + 1))


def test_every_sample_is_packed_once_and_whole(mixture):
    iterator = iter(batches(mixture))
    found = [segment for batch in take(iterator, 20) for segment in segments(batch)]
    rows = iterator.get_state()["rows"]
    stream, expected = RecordStream(mixture, 7), []
    for name, row in rows.items():
        waiting = {tuple(each) for each in row["pending"]}
        for number in range(int(name), row["next"] + 1, ROWS):
            samples = mixture[stream[number].component].render(stream[number].record, stream[number].rng())
            for piece, sample in enumerate(samples):
                drawn = (number, piece) < (row["next"], row["piece"])
                if drawn and sample.kept and (number, piece) not in waiting:
                    expected.append(tuple(sample.tokens.tolist()))
    assert sorted(found) == sorted(expected)
    assert len(found) > 400


def test_both_parts_come_by_weight_and_every_epoch_is_complete(mixture):
    drawn = [RecordStream(mixture, 7)[number] for number in range(300)]
    assert sum(each.component == 0 for each in drawn) == pytest.approx(200, abs=2)
    assert (
        sorted(each.index for each in drawn if each.component == 0)[:150]
        == sorted([*range(50)] * 3 + [*range(50)])[:150]
    )


def test_dropped_samples_are_counted(mixture):
    iterator = iter(batches(mixture, sequence_length=20))
    take(iterator, 10)
    counts = dropped(iterator.get_state())
    assert set(counts) == {f"component {part}: {why}" for part in (0, 1) for why in ("unlucky", "longer than the row")}
    numbers = [n for name, row in iterator.get_state()["rows"].items() for n in range(int(name), row["next"], ROWS)]
    stream = RecordStream(mixture, 7)
    unlucky = [n for n in numbers if stream[n].component == 0 and int(stream[n].record.items[1]) % 13 == 0]
    assert counts["component 0: unlucky"] == len(unlucky)


def test_resuming_at_any_step_is_exact(mixture):
    iterator, states, expected = iter(batches(mixture)), [], []
    for _ in range(12):
        states.append(json.dumps(iterator.get_state()))
        expected.append(next(iterator))
    final = iterator.get_state()
    assert any(row["piece"] for state in states for row in json.loads(state)["rows"].values())  # amid a document
    for step, state in enumerate(states):
        again = iter(batches(mixture))
        again.set_state(json.loads(state))
        for batch in expected[step:]:
            assert_equal(next(again), batch)
        assert again.get_state() == final


def test_state_is_exact_behind_the_prefetching_thread(mixture):
    settings = {"batch_size": ROWS, "sequence_length": LENGTH, "seed": 7, "look_ahead": 4}
    expected = take(iter(batches(mixture)), 12)
    iterator = iter(packed_batches(mixture, **settings, prefetch=3))
    take(iterator, 5)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state["step"] == 5  # not that of the batches made ahead
    take(iterator, 3)
    iterator.set_state(state)  # back, in the same iterator
    assert_equal(next(iterator), expected[5])
    iterator.close()
    fresh = iter(packed_batches(mixture, **settings, prefetch=0))
    fresh.set_state(state)
    for batch in expected[5:]:
        assert_equal(next(fresh), batch)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_rows_do_not_depend_on_the_number_of_hosts(mixture, hosts):
    iterators = [iter(batches(mixture, host, hosts)) for host in range(hosts)]
    for batch in take(iter(batches(mixture)), 6):
        assert_equal(joined([next(iterator) for iterator in iterators]), batch)


def test_resumes_on_another_number_of_hosts(mixture):
    expected = take(iter(batches(mixture)), 12)
    state, step = None, 0
    for hosts in (1, 2, 4, 2):
        iterators = [iter(batches(mixture, host, hosts)) for host in range(hosts)]
        for iterator in iterators if state else ():
            iterator.set_state(json.loads(state))
        for _ in range(3):
            assert_equal(joined([next(iterator) for iterator in iterators]), expected[step])
            step += 1
        state = json.dumps(merge_states([iterator.get_state() for iterator in reversed(iterators)]))
    assert step == 12


def test_order_depends_on_the_seed(mixture):
    one, two = next(iter(batches(mixture))), next(iter(batches(mixture, seed=8)))
    assert (one["tokens"] != two["tokens"]).mean() > 0.5


def test_mismatched_positions_are_refused(mixture):
    whole = next_state(batches(mixture))
    left, right = next_state(batches(mixture, 0, 2)), next_state(batches(mixture, 1, 2))
    with pytest.raises(UserError, match=r"lacks the rows \[4, 5, 6, 7\] of this host"):
        iter(batches(mixture, 1, 2)).set_state(left)
    with pytest.raises(UserError, match=r"lacks the rows \[4, 5, 6, 7\]"):
        merge_states([left])
    with pytest.raises(UserError, match="the same row"):
        merge_states([left, left])
    with pytest.raises(UserError, match=r"different steps \[1, 2\]"):
        merge_states([left, right | {"step": 2}])
    with pytest.raises(UserError, match=r"seed was 7, is 8; .*batch_size was 8, is 4"):
        iter(batches(mixture, seed=8, batch_size=4)).set_state(whole)
    with pytest.raises(UserError, match=r"mixture was \w+, is \w+"):
        iter(batches(mixture[:1])).set_state(whole)
    with pytest.raises(UserError, match="not of format 3"):
        iter(batches(mixture)).set_state({"next": 3})
    assert merge_states([right, left]) == whole


def next_state(dataset):
    iterator = iter(dataset)
    next(iterator)
    return iterator.get_state()


def test_impossible_settings(mixture):
    with pytest.raises(UserError, match=r"batch indices from 0 to 7.*got indices \[0, 8\]"):
        PackedBatches(RecordStream(mixture, 7), batch_size=8, batch_indices=[0, 8], sequence_length=LENGTH)
    with pytest.raises(UserError, match="needs a template"):
        batches([MixtureComponent(mixture[0].directory)])
    with pytest.raises(UserError, match="at least one component"):
        RecordStream([], 0)


def test_all_missing_components_are_listed_at_once(mixture, tmp_path):
    missing = [
        MixtureComponent(tmp_path / "laion", mixtures.render),
        mixture[0],
        MixtureComponent(tmp_path / "mmc4", mixtures.render),
    ]
    with pytest.raises(
        UserError,
        match=r"2 shard directories of a mixture of 3 components .*laion does not exist.*mmc4 does not exist",
    ):
        RecordStream(missing, 0)
    with pytest.raises(UserError, match=r"two were made by image tokenizer ffffffffffff, expected 000000000000"):
        RecordStream(mixture[1:], 0, tokenizer="0" * 64)


def render_all(record, rng):
    """Return one sample for each record, and a second piece for those from 100 on."""
    number = int(record.items[1])
    tokens = [np.full(3 + number % 38, first + number, np.int32) for first in (1000, 2000)[: 1 + (number >= 100)]]
    return [RenderedSample(each, np.ones(len(each), bool)) for each in tokens]


def in_epochs(mixture, *cycles):
    return [
        MixtureComponent(part.directory, render_all, 1, count) for part, count in zip(mixture, cycles, strict=False)
    ]


def test_epochs_put_every_sample_into_a_batch_and_end(mixture):
    iterator = iter(batches(in_epochs(mixture, 2, 3)))
    found, states = [], []
    for batch in iterator:
        found.extend(tokens[0] for tokens in segments(batch))
        states.append(iterator.get_state())
    once = [1000 + number for number in range(50)]
    pieces = [first + number for first in (1000, 2000) for number in range(100, 111)]
    assert Counter(found) == Counter(2 * once + 3 * pieces)
    # The state tells the end, whichever batch a run resumes from.
    assert [has_ended(state) for state in states] == [False] * (len(states) - 1) + [True]
    resumed = iter(batches(in_epochs(mixture, 2, 3)))
    middle = len(states) // 2
    resumed.set_state(json.loads(json.dumps(states[middle])))
    rest = [tokens[0] for batch in resumed for tokens in segments(batch)]
    assert rest == found[-len(rest) :]
    assert resumed.get_state()["step"] == len(states)
    resumed.set_state(states[-1])
    assert list(resumed) == []
    assert has_ended(iter(batches(mixture)).get_state()) is None


def test_hosts_without_samples_go_on_with_empty_rows(mixture):
    """All hosts take every step together; which of them has the last sample is known only together."""
    hosts = [iter(batches(in_epochs(mixture, 1), host=host, hosts=2)) for host in (0, 1)]
    samples = 0
    for _ in range(100):
        samples += sum(len(list(segments(next(host)))) for host in hosts)
        if all(has_ended(host.get_state()) for host in hosts):
            break
    assert samples == 50
    assert all(not next(host)["loss_mask"].any() for host in hosts)


def test_a_mixture_without_any_sample_that_fits_is_refused(mixture):
    with pytest.raises(UserError, match="No sample of the mixture fits"):
        next(iter(batches(in_epochs(mixture, 1), sequence_length=2)))


def test_exhausted_components_leave_the_others(mixture):
    finite = [dataclasses.replace(mixture[0], cycles=2)]
    endless = [finite[0], mixture[1]]
    iterator = iter(batches(endless))
    later = [take(iterator, 60)[-1] for _ in range(2)][-1]
    assert min(later["tokens"][:, 0]) >= 1000  # only the component without an end is left


def test_an_unusable_record_is_named(mixture):
    def render(record, rng):
        raise UserError("a code is out of range")

    with pytest.raises(
        UserError, match=r"record \d of .*shard-00000\d.array_record \(id 'folder/\d+'\): a code is out"
    ):
        next(iter(batches([MixtureComponent(mixture[0].directory, render)])))


def test_a_template_that_drops_everything_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "MAX_CONSECUTIVE_DROPS", 300)
    directory = mixtures.write(tmp_path / "d", [mixtures.captioned(13)])
    iterator = iter(
        packed_batches([MixtureComponent(directory, mixtures.render)], batch_size=2, sequence_length=LENGTH, seed=0)
    )
    with pytest.raises(UserError, match=r"last 300 samples were all dropped \(\{'component 0: unlucky': 300\}\)"):
        next(iterator)  # raised in the prefetching thread, seen here


def test_the_stream_is_a_random_access_source_for_grain(mixture):
    stream = RecordStream(mixture, 7)
    dataset = grain.MapDataset.source(stream)[1::2].map(lambda drawn: (drawn.number, drawn.record.id))
    expected = [(number, stream[number].record.id) for number in range(1, 41, 2)]
    assert [dataset[index] for index in range(20)] == expected
    assert pickle.loads(pickle.dumps(stream))[33].record.id == stream[33].record.id


def test_real_templates_fill_rows_with_whole_images(tmp_path):
    vocab = Vocabulary.load(golden.path("text_tokenizer/tokenizer"))
    words = ["the", "quiet", "dog", "rests", "beside", "a", "green", "river", "under", "old", "trees", "at", "night"]
    rng = np.random.default_rng(0)

    def caption(number):
        text = " ".join(rng.choice(words, rng.integers(4, 12)))
        return Record(str(number), "folder", (mixtures.codes(number) % vocab.num_codes, text, text + " again"), {})

    pairs = mixtures.write(tmp_path / "pairs", map(caption, range(200)))
    texts = mixtures.write(tmp_path / "texts", [Record(str(n), "folder", ("a river " * (n + 1),)) for n in range(60)])
    pair = templates.make_template("image_text_pair", {"max_length": 200}, vocab)
    text = templates.make_template("pretrain.text", {"max_length": 200}, vocab)
    mixture = [MixtureComponent(pairs, Renderer(pair), 4), MixtureComponent(texts, Renderer(text))]
    batch = next(iter(packed_batches(mixture, batch_size=4, sequence_length=1024, seed=0, tokenizer="f" * 64)))
    assert packing_stats(batch).efficiency >= 0.97
    samples = list(segments(batch))
    with_image = [tokens for tokens in samples if vocab.boi in tokens]
    assert 0.7 < len(with_image) / len(samples) < 0.9
    for tokens in samples:
        assert (tokens[0], tokens[-1]) == (vocab.bos, vocab.eos)
    for tokens in with_image:
        place = tokens.index(vocab.boi)
        codes = [vocab.code_of(token) for token in tokens[place + 1 : place + 33]]
        assert None not in codes
        assert tokens[place + 33] == vocab.eoi
    first = sum(tokens[1] == vocab.boi for tokens in with_image)
    assert 0.3 < first / len(with_image) < 0.7  # both orders, drawn with probability 1/2
