"""Both tokenizer stages through the one loop: they learn, go on where they were, and stage II starts from stage I."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from seed_jax.checkpoint import model_dir
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.train import loop
from seed_jax.train.stages.codebook.stage import CodebookStage
from tests.support import meshes
from tests.support.configs import config_for

SHARDED, RESHARDED = {"replica": 2, "fsdp": 2, "tensor": 2}, {"replica": 1, "fsdp": 8, "tensor": 1}
SEED1 = {"steps": 16, "log_every": 1, "checkpoint.every_steps": 16, "evaluate.every_steps": 16}
STEPS = 48  # enough to see learning begin


def settings(name, steps, mesh=SHARDED, **changes):
    every = {f"mesh.{axis}": size for axis, size in mesh.items()}
    every |= {"steps": steps, "log_every": 1, "checkpoint.every_steps": steps // 2, "evaluate.every_steps": steps // 2}
    return config_for(f"{name}:tiny", **every, **{key.replace("__", "."): value for key, value in changes.items()})


def rows(workdir, key):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def values(workdir, key):
    return [row[key] for row in rows(workdir, key)]


def go_on_from_the_middle(finished, workdir, config):
    """Copy a finished run, forget its second half, and run it again."""
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(config.steps))
    loop.train(config, workdir)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stages") / "one"
    loop.train(settings("tokenizer_qformer", STEPS), workdir)
    return workdir


@pytest.fixture(scope="module")
def stage_two(stage_one, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stages") / "two"
    loop.train(settings("tokenizer_codebook", STEPS, init_from__model=str(stage_one)), workdir)
    return workdir


@pytest.mark.slow
def test_stage_one_learns_to_match(stage_one):
    losses = values(stage_one, "loss")
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    held_out = values(stage_one, "eval/loss")
    assert held_out[-1] < held_out[0]
    found = rows(stage_one, "eval/i2t_recall@1")
    assert [row["step"] for row in found] == [STEPS // 2, STEPS]
    for way in ("i2t", "t2i"):  # chance is 1 of 12
        assert found[-1][f"eval/{way}_recall@1"] >= 0.5
        assert found[-1][f"eval/{way}_recall@5"] >= found[-1][f"eval/{way}_recall@1"]


@pytest.mark.slow
def test_stage_one_goes_on_where_it_was_on_another_mesh(stage_one, tmp_path):
    again = tmp_path / "again"
    go_on_from_the_middle(stage_one, again, settings("tokenizer_qformer", STEPS, RESHARDED))
    assert [row["step"] for row in rows(again, "loss")] == list(range(1, STEPS + 1))
    # Sums over other shards: 1e-6 a step, which steps at a high rate spread; another batch would change 10 %.
    later = slice(STEPS // 2, STEPS // 2 + 10)
    np.testing.assert_allclose(values(again, "loss")[later], values(stage_one, "loss")[later], rtol=2e-3)


@pytest.mark.slow
def test_stage_two_starts_from_stage_one_and_rebuilds_its_embeddings(stage_one, stage_two):
    before = model_dir.load(stage_one).params["params"]
    after = model_dir.load(stage_two).params["params"]
    for path, leaf in flatten_dict(before).items():
        if path[0] in ("vit", "ln_vision", "qformer"):  # frozen
            np.testing.assert_array_equal(flatten_dict(after)[path], leaf, err_msg="/".join(path))
    losses = values(stage_two, "loss")
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    first, last = rows(stage_two, "eval/codes_used")
    assert last["eval/loss"] < first["eval/loss"]
    terms = [last[f"eval/loss_{name}"] for name in ("embed", "reconstruction", "image")]
    assert last["eval/loss"] == pytest.approx(sum(terms), rel=1e-5)
    assert last["eval/reconstruction_distance"] < first["eval/reconstruction_distance"]
    # Stage I's embeddings retrieve as they did; codes only begin to.
    assert last["eval/embedding_t2i_recall@1"] == values(stage_one, "eval/t2i_recall@1")[-1]
    assert last["eval/code_t2i_recall@5"] > first["eval/code_t2i_recall@1"]


@pytest.mark.slow
def test_stage_two_goes_on_number_by_number(stage_one, stage_two, tmp_path):
    again = tmp_path / "again"
    config = settings("tokenizer_codebook", STEPS, init_from__model=str(stage_one))
    go_on_from_the_middle(stage_two, again, config)
    assert values(again, "loss") == values(stage_two, "loss")
    assert values(again, "codes_dead") == values(stage_two, "codes_dead")


@pytest.mark.slow
def test_a_workdir_of_stage_two_is_an_image_tokenizer(stage_two):
    tokenizer = ImageTokenizer.load(stage_two)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), dtype=np.uint8)
    codes = tokenizer.encode_pixels(pixels)
    assert codes.shape == (2, 32)


@pytest.mark.slow
def test_seed1_learns_to_predict_text_states(stage_one, tmp_path):
    config = config_for("tokenizer_codebook:seed1_tiny", **SEED1, **{"init_from.model": str(stage_one)})
    with meshes.on_devices(1):
        loop.train(config, tmp_path)
    losses = values(tmp_path, "loss")
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    texts = values(tmp_path, "loss_text")
    assert np.mean(texts[-3:]) < 0.9 * texts[0]
    assert not values(tmp_path, "loss_image")
    tokenizer = ImageTokenizer.load(tmp_path)
    codes = tokenizer.encode_pixels(np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), dtype=np.uint8))
    assert np.asarray(tokenizer.embed_codes(codes)).shape == (2, 77, 32)


def test_heads_that_predict_other_things_do_not_mix(tmp_path):
    for head, other in (("mlp", "text_features"), ("text_features", "mlp")):
        config = SeedTokenizerConfig.tiny(head)
        model_dir.save(tmp_path / head, "seed_tokenizer", {"sizes": config.to_dict()}, {"codebook": np.zeros(1)})
        variant = "seed1_tiny" if other == "text_features" else "tiny"
        with pytest.raises(UserError, match=f"set model.head to '{head}'"):
            CodebookStage(config_for(f"tokenizer_codebook:{variant}", **{"init_from.model": str(tmp_path / head)}))


def clip_vocabulary(directory):
    """Write a vocabulary of bytes alone."""
    symbols = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    ids = {symbol: index for index, symbol in enumerate([*symbols, *(s + "</w>" for s in symbols)])}
    ids |= {"<|startoftext|>": len(ids), "<|endoftext|>": len(ids) + 1}
    directory.mkdir()
    ClipVocabulary(ids, ()).save(directory)
    return directory


@pytest.mark.slow
def test_every_option_at_once(stage_one, tmp_path):
    config = settings(
        "tokenizer_codebook",
        6,
        init_from__model=str(stage_one),
        model__head="reverse_qformer",
        model__text_branch=True,
        model__dropout=0.1,
        teacher__text="untrained",
        teacher__text_vocabulary=str(clip_vocabulary(tmp_path / "clip")),
        objective__frozen_dropout=True,
        objective__reconstruction_kind="mse",
        codebook__init="kmeans",
        codebook__ema_decay=0.9,
        codebook__restart_after=3,
        codebook__dead_after=2,
        codebook__kmeans_vectors=8,
    )
    with meshes.on_devices(1):
        loop.train(config, tmp_path / "run")
    assert len(values(tmp_path / "run", "loss_text")) == 6
    variables = model_dir.load(tmp_path / "run").params
    assert variables["text_branch"]["reverse_qformer"]["query_tokens"].shape == (77, 64)
    # Codes start and stay where vectors are, so more than half of them serve a batch of 24 x 32 vectors at once.
    assert min(values(tmp_path / "run", "codes_used")) > 0.5
    averages = variables["codebook_stats"]["ema_sum"] / variables["codebook_stats"]["ema_count"][:, None]
    np.testing.assert_allclose(variables["params"]["codebook"], averages, rtol=1e-2, atol=1e-4)  # but for smoothing


@pytest.mark.parametrize(
    ("name", "changes", "key_words"),
    [
        ("tokenizer_qformer", {"model.itc_gradient": "none"}, "itc_gradient is 'none'.*own, through_gather"),
        ("tokenizer_qformer", {"optimizer.accumulation": 2}, "expected 1 in stage qformer"),
        ("tokenizer_qformer", {"data.demo": False}, "data.mixture is empty"),
        ("tokenizer_qformer", {"init_from.model": "/nowhere"}, "init_from.model /nowhere"),
        ("tokenizer_qformer", {"optimizer.schedule": "linear"}, "warmup_cosine, epochs"),
        ("tokenizer_codebook", {"teacher.vision": ""}, "teacher.vision is empty"),
        ("tokenizer_codebook", {"codebook.init": "magic"}, "codebook.init is 'magic'.*kmeans"),
        ("tokenizer_codebook", {"model.text_branch": True}, "teacher.text"),
        ("tokenizer_codebook", {"model.head": "text_features"}, "needed by the head text_features"),
        (
            "tokenizer_codebook",
            {"model.head": "text_features", "model.text_branch": True},
            "predicts text states already",
        ),
        (
            "tokenizer_codebook",
            {"model.head": "text_features", "teacher.text": "/nowhere", "teacher.text_vocabulary": "/x"},
            "77 states of width 768.*77 of width 32",
        ),
        ("tokenizer_codebook", {"codebook.restart_after": 1, "optimizer.accumulation": 3}, "expected 1 with codebook"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, name, changes, key_words):
    with pytest.raises(UserError, match=key_words):
        loop.train(config_for(f"{name}:tiny", **changes), tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_qformer", "tokenizer_codebook"])
def test_unknown_variant(name):
    with pytest.raises(UserError, match="no variant 'huge'"):
        config_for(f"{name}:huge")


def test_devices_are_eight():
    assert jax.device_count() == 8  # or the meshes above would be refused
