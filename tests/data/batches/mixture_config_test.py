"""Mixtures as configs describe them: the official ones, their weights, and a tiny one from shards to batches."""

import json

import numpy as np
import pytest

from configs import pretrain as pretrain_config
from configs import sft as sft_config
from configs.data import pretrain, sft
from seed_jax.data.batches import mixture_config
from seed_jax.data.batches.mixture_config import make_mixture
from seed_jax.data.batches.packed import packed_batches
from seed_jax.data.batches.packing import packing_stats
from seed_jax.data.shards.records import Record
from seed_jax.data.templates import make_template
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from tests.data.batches import mixtures
from tests.support import golden

WORDS = "the quiet dog rests beside a green river under old trees at night".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def shares(entries):
    weights = [entry["weight"] * entry["batch_size"] for entry in entries]
    return [round(100 * weight / sum(weights), 1) for weight in weights]


def test_the_official_mixtures(vocab):
    """Spec D.3 and D.4: number of parts, weights, batch sizes, lengths; weight times batch size is the sample share."""
    six, eighteen = pretrain.components(), sft.components()
    assert [entry["weight"] for entry in six] == [0.5, 5.0, 2.0, 1.0, 0.5, 1.0]
    assert [entry["batch_size"] for entry in six] == [116, 164, 26, 26, 116, 26]
    assert [entry["params"]["max_length"] for entry in six] == [200, 140, 1024, 1024, 200, 1024]
    assert [entry["cycles"] for entry in six] == [7, 2, 3, 1, 5, 3]
    assert shares(six) == [5.6, 78.8, 5.0, 2.5, 5.6, 2.5]
    assert len(eighteen) == 18
    assert sum(entry["weight"] for entry in eighteen) == pytest.approx(3.81)
    assert [entry["params"]["max_length"] for entry in eighteen] == [
        *(200, 360, 100, 512, 1024, 100, 100, 360, 100, 200, 360, 512, 400, 128, 100, 100, 360, 100)
    ]
    for entry in (*six, *eighteen):
        make_template(entry["task"], entry["params"], vocab)
    assert {entry["params"]["style"] for entry in sft.components(style="llama2")} == {"llama2"}


def test_configs_use_the_official_mixtures():
    config = pretrain_config.get_config("8b")
    assert config.data.mixture == pretrain.components("data")
    assert config.data.weight_by == "samples"
    assert sft_config.get_config("14b").data.mixture == sft.components("data/sft", style="llama2")
    json.loads(config.to_json_best_effort())


def words(rng, low, high):
    return " ".join(rng.choice(WORDS, int(rng.integers(low, high))))


def image(rng):
    return rng.integers(0, 128, 32).astype(np.uint16)


def tiny_records(task, rng, number):
    """Return a record that suits a task."""
    frames = {"sft.difference": 2, "sft.edit": 2, "sft.story": 5, "sft.video_qa": 4, "pretrain.video_caption": 4}
    texts = {"sft.story": 5, "sft.conversation": 4, "sft.visual_question": 2, "sft.difference": 2}
    items = [image(rng) for _ in range(frames.get(task, 0 if task == "pretrain.text" else 1))]
    if task == "pretrain.interleaved":
        items = [each for _ in range(6) for each in (image(rng), words(rng, 5, 60))]
    elif task == "pretrain.text":
        items = [words(rng, 40, 700)]
    else:
        items += [words(rng, 4, 9) for _ in range(texts.get(task, 1))]
    meta = {"question": words(rng, 3, 6)} if task in ("sft.qa", "sft.video_qa") else {}
    return Record(f"{task}/{number}", "test", tuple(items), meta)


def tiny_shards(entries, root, count=24):
    """Write shards for every directory of a mixture."""
    for entry in entries:
        paths = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        for path in paths:
            rng = np.random.default_rng(len(path))
            mixtures.write(root / path, [tiny_records(entry["task"], rng, number) for number in range(count)])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The two official mixtures over tiny shards."""
    root = tmp_path_factory.mktemp("tiny")
    both = {"pretrain": pretrain.components("pre"), "sft": sft.components("sft")}
    for entries in both.values():
        tiny_shards(entries, root)
    return root, both


def located(entries, root):
    def at(path):
        return [str(root / each) for each in path] if isinstance(path, list) else str(root / path)

    return [{**entry, "path": at(entry["path"])} for entry in entries]


@pytest.mark.parametrize("weight_by", ["samples", "tokens"])
@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_tiny_official_mixtures_run_end_to_end(tiny, vocab, name, weight_by):
    root, both = tiny
    endless = [{**entry, "cycles": None} for entry in located(both[name], root)]
    made = make_mixture(endless, vocab, weight_by)
    assert len(made) == len(both[name])
    iterator = iter(packed_batches(made, batch_size=4, sequence_length=2048, seed=0, prefetch=0, tokenizer="f" * 64))
    stats = [packing_stats(next(iterator)) for _ in range(3)]
    assert min(each.efficiency for each in stats) > 0.9
    assert min(each.trained for each in stats) > 0


def test_weights_by_tokens_give_those_shares_of_tokens(tiny, vocab):
    root, both = tiny
    entries = [
        {**entry, "weight": weight}
        for entry, weight in zip(located(both["pretrain"], root)[3:], (3, 2, 5), strict=True)
    ]
    entries = [{key: value for key, value in entry.items() if key != "cycles"} for entry in entries]
    made = make_mixture(entries, vocab, "tokens")
    from seed_jax.data.batches.record_stream import RecordStream

    stream, tokens = RecordStream(made, 0), np.zeros(3)
    for drawn in stream.read(np.arange(2000)):
        tokens[drawn.component] += sum(len(each) for each in made[drawn.component].render(drawn.record, drawn.rng()))
    # 3 percentage points: 2000 samples of three parts with lengths of 20 to 1024.
    np.testing.assert_allclose(tokens / tokens.sum(), [0.3, 0.2, 0.5], atol=0.03)


def test_several_directories_count_as_one_component(tiny, vocab):
    root, both = tiny
    entry = located(both["pretrain"], root)[0]
    assert len(entry["path"]) == 3
    (made,) = make_mixture([{**entry, "cycles": None}], vocab)
    from seed_jax.data.batches.record_stream import RecordStream

    stream = RecordStream([made], 0)
    seen = [stream[number].index for number in range(72)]
    assert sorted(seen) == list(range(72))
    where = stream.describe_location(stream[seen.index(50)])
    assert where.startswith(f"record 2 of {root}/pre/coco_captions/shard-000000")


def test_every_problem_of_a_mixture_is_named_at_once(tmp_path, vocab):
    entries = [
        {"path": "a", "task": "image_text_pair"},
        {"path": "b", "task": "text", "weight": 1, "colour": "red"},
        {"path": "c", "task": "texts", "weight": 1},
        {"path": [], "task": "pretrain.text", "weight": 1},
        {"path": "d", "task": "pretrain.text", "weight": 1, "batch_size": 0},
        {"path": "e", "task": "pretrain.text", "weight": 1, "question": "Why?"},
    ]
    with pytest.raises(UserError) as error:
        make_mixture(entries, vocab)
    for words_ in (
        "component 0 (a): missing keys: weight",
        "unknown keys: colour",
        "Unknown task 'texts'",
        "path is []",
        "batch_size is 0",
        "has no single question",
    ):
        assert words_ in str(error.value)
    with pytest.raises(UserError, match=r"data.weight_by is 'bytes'"):
        make_mixture([], vocab, "bytes")
    with pytest.raises(UserError, match="28 shard directories of a mixture of 18 components"):
        make_mixture([{**entry, "weight": 1.0} for entry in sft.components(str(tmp_path))], vocab, "tokens")


def test_a_task_without_samples_is_an_error_by_tokens(tmp_path, vocab):
    mixtures.write(tmp_path / "d", [Record("1", "t", ("?.",))])
    entries = [{"path": str(tmp_path / "d"), "task": "pretrain.text", "weight": 1}]
    with pytest.raises(UserError, match=r"None of 1 records of .* gives a sample"):
        make_mixture(entries, vocab, "tokens")
    assert mixture_config.NUM_MEASURED > 100
