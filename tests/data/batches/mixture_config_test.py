"""Mixtures as configs describe them: the official ones, their weights, and a tiny one from shards to batches."""

import json

import numpy as np
import pytest

from configs import pretrain as pretrain_config
from configs import sft as sft_config
from configs.data import pretrain, sft
from seed_jax.data.batches import mixture_config as part_lists
from seed_jax.data.batches.mixture_config import make_parts
from seed_jax.data.batches.packed import packed_batches
from seed_jax.data.batches.packing import packing_stats
from seed_jax.data.shards.records import Record
from seed_jax.data.templates import make
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from tests.data.batches import mixtures
from tests.support import golden

WORDS = "the quiet dog rests beside a green river under old trees at night".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def shares(described):
    weights = [part["weight"] * part["batch_size"] for part in described]
    return [round(100 * weight / sum(weights), 1) for weight in weights]


def test_the_official_mixtures(vocab):
    """Spec D.3 and D.4: number of parts, weights, batch sizes, lengths; weight times batch size is the sample share."""
    six, eighteen = pretrain.parts(), sft.parts()
    assert [part["weight"] for part in six] == [0.5, 5.0, 2.0, 1.0, 0.5, 1.0]
    assert [part["batch_size"] for part in six] == [116, 164, 26, 26, 116, 26]
    assert [part["params"]["max_length"] for part in six] == [200, 140, 1024, 1024, 200, 1024]
    assert [part["cycles"] for part in six] == [7, 2, 3, 1, 5, 3]
    assert shares(six) == [5.6, 78.8, 5.0, 2.5, 5.6, 2.5]
    assert len(eighteen) == 18
    assert sum(part["weight"] for part in eighteen) == pytest.approx(3.81)
    assert [part["params"]["max_length"] for part in eighteen] == [
        *(200, 360, 100, 512, 1024, 100, 100, 360, 100, 200, 360, 512, 400, 128, 100, 100, 360, 100)
    ]
    for part in (*six, *eighteen):
        make(part["task"], part["params"], vocab)
    assert {part["params"]["style"] for part in sft.parts(style="llama2")} == {"llama2"}


def test_configs_use_the_official_mixtures():
    config = pretrain_config.get_config("8b")
    assert config.data.parts == pretrain.parts("data")
    assert config.data.weight_by == "samples"
    assert sft_config.get_config("14b").data.parts == sft.parts("data/sft", style="llama2")
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


def tiny_shards(described, root, count=24):
    """Write shards for every directory of a mixture."""
    for part in described:
        paths = part["path"] if isinstance(part["path"], list) else [part["path"]]
        for path in paths:
            rng = np.random.default_rng(len(path))
            mixtures.write(root / path, [tiny_records(part["task"], rng, number) for number in range(count)])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The two official mixtures over tiny shards."""
    root = tmp_path_factory.mktemp("tiny")
    both = {"pretrain": pretrain.parts("pre"), "sft": sft.parts("sft")}
    for described in both.values():
        tiny_shards(described, root)
    return root, both


def located(described, root):
    def at(path):
        return [str(root / each) for each in path] if isinstance(path, list) else str(root / path)

    return [{**part, "path": at(part["path"])} for part in described]


@pytest.mark.parametrize("weight_by", ["samples", "tokens"])
@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_tiny_official_mixtures_run_end_to_end(tiny, vocab, name, weight_by):
    root, both = tiny
    endless = [{**part, "cycles": None} for part in located(both[name], root)]
    made = make_parts(endless, vocab, weight_by)
    assert len(made) == len(both[name])
    iterator = iter(packed_batches(made, rows=4, length=2048, seed=0, prefetch=0, tokenizer="f" * 64))
    stats = [packing_stats(next(iterator)) for _ in range(3)]
    assert min(each.useful_share for each in stats) > 0.9
    assert min(each.trained for each in stats) > 0


def test_weights_by_tokens_give_those_shares_of_tokens(tiny, vocab):
    root, both = tiny
    described = [
        {**part, "weight": weight} for part, weight in zip(located(both["pretrain"], root)[3:], (3, 2, 5), strict=True)
    ]
    described = [{key: value for key, value in part.items() if key != "cycles"} for part in described]
    made = make_parts(described, vocab, "tokens")
    from seed_jax.data.batches.record_stream import RecordStream

    stream, tokens = RecordStream(made, 0), np.zeros(3)
    for drawn in stream.draw(np.arange(2000)):
        tokens[drawn.part] += sum(len(each) for each in made[drawn.part].render(drawn.record, drawn.rng()))
    # 3 percentage points: 2000 samples of three parts with lengths of 20 to 1024.
    np.testing.assert_allclose(tokens / tokens.sum(), [0.3, 0.2, 0.5], atol=0.03)


def test_a_part_of_several_directories_counts_as_one(tiny, vocab):
    root, both = tiny
    part = located(both["pretrain"], root)[0]
    assert len(part["path"]) == 3
    (made,) = make_parts([{**part, "cycles": None}], vocab)
    from seed_jax.data.batches.record_stream import RecordStream

    stream = RecordStream([made], 0)
    seen = [stream[number].place for number in range(72)]
    assert sorted(seen) == list(range(72))
    where = stream.where(stream[seen.index(50)])
    assert where.startswith(f"record 2 of {root}/pre/coco_captions/shard-000000")


def test_every_problem_of_a_mixture_is_named_at_once(tmp_path, vocab):
    described = [
        {"path": "a", "task": "image_text_pair"},
        {"path": "b", "task": "text", "weight": 1, "colour": "red"},
        {"path": "c", "task": "texts", "weight": 1},
        {"path": [], "task": "pretrain.text", "weight": 1},
        {"path": "d", "task": "pretrain.text", "weight": 1, "batch_size": 0},
        {"path": "e", "task": "pretrain.text", "weight": 1, "question": "Why?"},
    ]
    with pytest.raises(UserError) as error:
        make_parts(described, vocab)
    for words_ in (
        "part 0 (a): it lacks weight",
        "unknown keys colour",
        "no task 'texts'",
        "path is []",
        "batch_size is 0",
        "has no single question",
    ):
        assert words_ in str(error.value)
    with pytest.raises(UserError, match=r"data.weight_by is 'bytes'"):
        make_parts([], vocab, "bytes")
    with pytest.raises(UserError, match="28 of the directories of a mixture of 18 parts"):
        make_parts([{**part, "weight": 1.0} for part in sft.parts(str(tmp_path))], vocab, "tokens")


def test_a_task_that_gives_nothing_is_an_error_by_tokens(tmp_path, vocab):
    mixtures.write(tmp_path / "d", [Record("1", "t", ("?.",))])
    described = [{"path": str(tmp_path / "d"), "task": "pretrain.text", "weight": 1}]
    with pytest.raises(UserError, match=r"None of 1 records of .* gives a sample"):
        make_parts(described, vocab, "tokens")
    assert part_lists.MEASURED > 100
