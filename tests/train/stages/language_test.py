"""Training a language model end to end: meshes, accumulation, resuming, and what is refused."""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from seed_jax import cli
from seed_jax.checkpoint import model_dir
from seed_jax.data.shards.records import Record
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.language_model import load_language_model
from seed_jax.models.nn import attention, remat
from seed_jax.train import loop
from seed_jax.train.config.language import ATTENTION, REMAT
from seed_jax.train.stages.language_init import extend_rows
from tests.data.batches import mixtures
from tests.evaluation import datasets
from tests.support import configs, golden

STEPS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Forty captioned pictures over the golden vocabulary's 128 codes."""
    rng = np.random.default_rng(0)
    words = ("a dog", "the green grass", "a red car on the beach", "two cats")

    def record(number):
        codes = rng.integers(0, 128, 32).astype(np.uint16)
        return Record(f"folder/{number}", "folder", (codes, f"{words[number % 4]} at night {number}"), {})

    return mixtures.write(tmp_path_factory.mktemp("shards") / "pairs", map(record, range(40)))


def config_for(shards, **changes):
    component = {"path": str(shards), "task": "image_text_pair", "weight": 1.0, "params": {"max_length": 128}}
    options = {
        "data.demo": False,
        "data.vocabulary": str(golden.path("text_tokenizer/tokenizer")),
        "data.mixture": (component,),
        "data.sequence_length": 160,
        "steps": STEPS,
        "log_every": 1,
        "checkpoint.every_steps": 2,
    }
    return configs.config_for("pretrain:tiny", **(options | changes))


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def single(shards, tmp_path_factory):
    """A run on eight devices that only cut the batch, never stopped."""
    workdir = tmp_path_factory.mktemp("single")
    loop.train(config_for(shards), workdir)
    return workdir


def test_the_loss_falls_and_everything_is_reported(single):
    rows = [json.loads(line) for line in (single / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss"] < rows[0]["loss"]
    expected = {"loss", "loss_text", "loss_image", "packed_share", "tokens_per_second", "data_wait_share"}
    assert expected | {"compile_seconds", "grad_norm", "lr"} <= rows[0].keys()
    assert list((single / "tensorboard").glob("events*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [{"mesh.fsdp": 4, "mesh.tensor": 2}, {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}]
)
def test_another_mesh_gives_the_same_losses(shards, single, tmp_path, mesh):
    loop.train(config_for(shards, **mesh), tmp_path)
    expected, found = losses(single), losses(tmp_path)
    # 1e-5: float32 sums in another order, six AdamW steps.
    np.testing.assert_allclose([found[s] for s in expected], list(expected.values()), atol=1e-5)


@pytest.mark.slow
def test_resuming_continues_exactly(shards, single, tmp_path, monkeypatch):
    """Stopped after step 3 without saving it, the run resumes from step 2 with the same batches and losses."""

    class Killed(BaseException):
        pass

    def killed(progress, result):
        if result.step == 4:
            raise Killed
        return after_step(progress, result)

    after_step = loop.Progress.after_step
    with monkeypatch.context() as patch:
        patch.setattr(loop.Progress, "after_step", killed)
        with pytest.raises(Killed):
            loop.train(config_for(shards), tmp_path)
    loop.train(config_for(shards), tmp_path)
    assert losses(tmp_path) == losses(single)


def test_one_epoch_trains_every_sample_saves_and_ends(shards, tmp_path, caplog):
    """Forty samples of some 45 tokens in rows of 160, eight rows a step: two steps, of which the last is part empty."""
    (component,) = config_for(shards).data.mixture
    config = config_for(shards, **{"data.mixture": ({**component, "cycles": 1},), "checkpoint.every_steps": 50})
    with caplog.at_level(logging.INFO):
        loop.train(config, tmp_path)
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        last = rows[-1]["step"]
        assert last < STEPS
        assert rows[-1]["packed_share"] < rows[0]["packed_share"]
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(last)]
        assert f"data ended after step {last} of {STEPS}" in caplog.text
        loop.train(config, tmp_path)
    assert f"ended already, after step {last} of {STEPS}" in caplog.text
    assert losses(tmp_path).keys() == set(range(1, last + 1))


def test_a_finished_run_is_left_as_it_is(shards, single):
    before = losses(single)
    loop.train(config_for(shards), single)
    assert losses(single) == before


def test_the_workdir_is_a_model_directory(shards, single):
    found = model_dir.load(single, "llama")
    vocabulary = Vocabulary.load(found.directory)
    assert found.config["sizes"]["vocab_size"] == vocabulary.size == 830
    assert set(found.params) == {"params", "lora"}
    resaved = model_dir.load(single, "llama", dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(resaved.params)} == {"bfloat16"}


@pytest.mark.slow
def test_full_fine_tuning_goes_on_from_a_lora_run(shards, single, tmp_path):
    """Adapters are merged exactly, everything but the embedding table moves, and no adapters are left."""
    changes = {"stage": "pretrain_full", "model.train": "full", "model.init": str(single), "steps": 1}
    loop.train(config_for(shards, **changes, **{"optimizer.warmup_ratio": 1.0, "data.batch_size": 16}), tmp_path)
    merged = load_language_model(single).params
    tuned = model_dir.load(tmp_path, "llama").params
    assert set(tuned) == {"params"}
    # The first step of the warm-up has learning rate 0, so what is saved is what training started from.
    for path, leaf in flatten_dict(merged).items():
        # 1e-6: the merge is one float32 product, summed in another order under jit.
        np.testing.assert_allclose(flatten_dict(tuned["params"])[path], leaf, atol=1e-6, err_msg="/".join(path))
    again = {**changes, "steps": 3, "optimizer.peak_lr": 1e-2}
    loop.train(config_for(shards, **again), tmp_path / "again")
    moved = flatten_dict(model_dir.load(tmp_path / "again", "llama").params["params"])
    same = {path for path, leaf in flatten_dict(merged).items() if np.allclose(leaf, moved[path], atol=1e-6)}
    assert same == {("embed_tokens", "embedding")}


@pytest.mark.slow
def test_the_held_out_loss_is_that_of_training_without_dropout(shards, tmp_path):
    """On the training data itself, before the first update changed anything: step 1 has learning rate 0."""
    changes = {"evaluate.data": str(shards), "evaluate.every_steps": 1, "evaluate.max_samples": 8, "lora.dropout": 0.0}
    loop.train(config_for(shards, steps=1, **changes), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (evaluated,) = [row for row in rows if "eval/loss" in row]
    assert evaluated["eval/loss"] == pytest.approx(losses(tmp_path)[1], abs=1e-5)
    assert evaluated["eval/loss_image"] > 0


@pytest.mark.slow
def test_tasks_answer_while_training_as_they_do_afterwards(shards, tmp_path):
    """The best by the task's metric is kept, and its predictions are those of `seed-jax eval` on the workdir."""
    data = datasets.gqa(tmp_path / "data").parent
    datasets.write_model(tmp_path / "models")
    tokenizer = tmp_path / "models/tokenizer"
    entry = {"task": "gqa", "data": str(data), "decoding": {"beams": 1, "max_new_tokens": 8}, "samples": 1}
    tasks = {"evaluate.tasks": (entry,), "evaluate.image_tokenizer": str(tokenizer), "evaluate.every_steps": 2}
    workdir = tmp_path / "run"
    loop.train(config_for(shards, steps=3, **tasks, **{"checkpoint.keep_best": "gqa/accuracy"}), workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "gqa/accuracy" in row] == [2, 3]
    assert json.loads((workdir / "best.json").read_text())["metric"] == "gqa/accuracy"
    (workdir / "best.json").unlink()  # the files are those of the last evaluation
    words = ["--tokenizer", tokenizer, "--data", data, "--out", tmp_path / "out", "--beams", 1, "--max-new-tokens", 8]
    assert cli.main(["eval", "gqa", "--model", str(workdir), *map(str, words)]) == 0
    files = [workdir / "evaluations/gqa/predictions.jsonl", tmp_path / "out/gqa/predictions.jsonl"]
    first, second = (json.loads(path.read_text()) for path in files)
    assert first == second


def test_a_vocabulary_without_image_tokens_grows():
    """Rows of the base stay, new ones have standard deviation 0.02, padding is zero."""
    table = jnp.arange(12.0).reshape(4, 3)
    grown = extend_rows(table, rows=3, new_rows=4003, padded_rows=4096, key=jax.random.key(0))
    np.testing.assert_array_equal(grown[:3], table[:3])
    assert 0.0195 < float(grown[3:4003].std()) < 0.0205
    np.testing.assert_array_equal(grown[4003:], 0)


@pytest.mark.slow
def test_no_big_parameter_lies_whole_on_every_device(shards, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        loop.train(config_for(shards, **{"mesh.fsdp": 4, "mesh.tensor": 2, "steps": 1}), tmp_path)
    lines = [line for line in caplog.messages if line.startswith("shard ")]
    assert any("mlp/gate_proj/kernel" in line and "'fsdp', 'tensor'" in line for line in lines)
    assert all(float(line.split()[-2]) < 1 for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.fsdp": 3}, "fsdp 3.*8 device"),
        ({"data.batch_size": 6}, "data.batch_size is 6, expected a multiple of 8"),
        ({"optimizer.accumulation": 4}, "multiple of 32"),
        ({"steps": 0, "precision.compute": "float8"}, "steps is 0.*precision.compute is 'float8'"),
        ({"model.config": "70b"}, "model.config is '70b', expected one of"),
        ({"model.config": "seed_8b"}, "has 830 tokens.*needs 40194"),
        ({"model.init": "nowhere"}, "model.init nowhere.*seed-jax import llama"),
        ({"data.vocabulary": "nowhere"}, "data.vocabulary nowhere.*seed-jax fetch"),
        ({"stage": "sleep"}, "stage is 'sleep'"),
        ({"data.image_tokenizer": "0" * 64}, "tokenizer"),
        ({"model.remat": "some"}, "some"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_no_checkpoint(shards, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        loop.train(config_for(shards, **changes), tmp_path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*")) if (tmp_path / "checkpoints").exists() else True


def test_the_config_knows_every_implementation():
    assert set(REMAT) == {"auto", *remat.POLICIES}
    assert set(ATTENTION) == {"auto", *attention.IMPLEMENTATIONS}


def test_all_missing_parts_are_listed(shards, tmp_path):
    entries = tuple({"path": f"gone/{name}", "task": "text", "weight": 1.0, "params": {}} for name in ("a", "b"))
    config = config_for(shards, **{"data.mixture": entries})
    with pytest.raises(UserError, match=r"gone/a.*gone/b"):
        loop.train(config, tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(shards, single):
    with pytest.raises(UserError, match=r"lora.rank 16 -> 8"):
        loop.train(config_for(shards, **{"lora.rank": 8}), single)


def test_one_run_at_a_time(shards, tmp_path):
    from seed_jax.train.runtime import workdir

    with workdir.locked(tmp_path), pytest.raises(UserError, match="in use by another run"):
        loop.train(config_for(shards), tmp_path)
