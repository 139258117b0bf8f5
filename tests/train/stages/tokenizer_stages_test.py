"""Both tokenizer stages through the one loop: they learn, go on where they were, and stage II starts from stage I."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import tokenizer_codebook, tokenizer_qformer
from seed_jax.checkpoint import model_dir
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.errors import UserError
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.train import loop
from tests.support import meshes

SHARDED, RESHARDED = {"replica": 2, "fsdp": 2, "tensor": 2}, {"replica": 1, "fsdp": 8, "tensor": 1}
STEPS = 48  # enough to see learning begin


def settings(config, steps, mesh=SHARDED, **changes):
    config.steps = steps
    config.mesh.update(mesh)
    config.log_every = 1
    config.checkpoint.every_steps = config.evaluate.every_steps = steps // 2
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def rows(workdir, key):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def values(workdir, key):
    return [row[key] for row in rows(workdir, key)]


def go_on_from_the_middle(finished, workdir, config):
    """Copy a finished run, forget its second half, and run it again."""
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(config.steps))
    loop.run(config, workdir)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stages") / "one"
    loop.run(settings(tokenizer_qformer.get_config("tiny"), STEPS), workdir)
    return workdir


@pytest.fixture(scope="module")
def stage_two(stage_one, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stages") / "two"
    loop.run(settings(tokenizer_codebook.get_config("tiny"), STEPS, start__init=str(stage_one)), workdir)
    return workdir


def test_stage_one_learns_to_match(stage_one):
    losses = values(stage_one, "loss")
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    found = rows(stage_one, "held/i2t_recall@1")
    assert [row["step"] for row in found] == [STEPS // 2, STEPS]
    for way in ("i2t", "t2i"):  # chance is 1 of 12
        assert found[-1][f"held/{way}_recall@1"] >= 0.5
        assert found[-1][f"held/{way}_recall@5"] >= found[-1][f"held/{way}_recall@1"]


def test_stage_one_goes_on_where_it_was_on_another_mesh(stage_one, tmp_path):
    again = tmp_path / "again"
    go_on_from_the_middle(stage_one, again, settings(tokenizer_qformer.get_config("tiny"), STEPS, RESHARDED))
    assert [row["step"] for row in rows(again, "loss")] == list(range(1, STEPS + 1))
    # Sums over other shards: 1e-6 a step, which steps at a high rate spread; another batch would change 10 %.
    later = slice(STEPS // 2, STEPS // 2 + 10)
    np.testing.assert_allclose(values(again, "loss")[later], values(stage_one, "loss")[later], rtol=2e-3)


def test_stage_two_starts_from_stage_one_and_rebuilds_its_embeddings(stage_one, stage_two):
    before = model_dir.load(stage_one).params["params"]
    after = model_dir.load(stage_two).params["params"]
    for path, leaf in flatten_dict(before).items():
        if path[0] in ("vit", "ln_vision", "qformer"):  # frozen
            np.testing.assert_array_equal(flatten_dict(after)[path], leaf, err_msg="/".join(path))
    losses = values(stage_two, "loss")
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    first, last = rows(stage_two, "held/codes_used")
    assert last["held/reconstruction_distance"] < first["held/reconstruction_distance"]
    # Stage I's embeddings retrieve as they did; codes only begin to.
    assert last["held/embedding_t2i_recall@1"] == values(stage_one, "held/t2i_recall@1")[-1]
    assert last["held/code_t2i_recall@5"] > first["held/code_t2i_recall@1"]


def test_stage_two_goes_on_number_by_number(stage_one, stage_two, tmp_path):
    again = tmp_path / "again"
    config = settings(tokenizer_codebook.get_config("tiny"), STEPS, start__init=str(stage_one))
    go_on_from_the_middle(stage_two, again, config)
    assert values(again, "loss") == values(stage_two, "loss")
    assert values(again, "codes_dead") == values(stage_two, "codes_dead")


def test_a_workdir_of_stage_two_is_an_image_tokenizer(stage_two):
    tokenizer = ImageTokenizer.load(stage_two)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), dtype=np.uint8)
    codes = tokenizer.encode_pixels(pixels)
    assert codes.shape == (2, 32)


def clip_vocabulary(directory):
    """Write a vocabulary of bytes alone."""
    symbols = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    ids = {symbol: index for index, symbol in enumerate([*symbols, *(s + "</w>" for s in symbols)])}
    ids |= {"<|startoftext|>": len(ids), "<|endoftext|>": len(ids) + 1}
    directory.mkdir()
    ClipVocabulary(ids, ()).save(directory)
    return directory


def test_every_option_at_once(stage_one, tmp_path):
    config = settings(
        tokenizer_codebook.get_config("tiny"),
        6,
        start__init=str(stage_one),
        model__head="reverse_qformer",
        model__text_branch=True,
        model__dropout=0.1,
        teacher__text="untrained",
        teacher__text_vocabulary=str(clip_vocabulary(tmp_path / "clip")),
        objective__frozen_dropout=True,
        objective__reconstruction_kind="mse",
        codebook__start="kmeans",
        codebook__ema_decay=0.9,
        codebook__restart_after=3,
        codebook__dead_after=2,
        codebook__kmeans_vectors=8,
    )
    with meshes.on_devices(1):
        loop.run(config, tmp_path / "run")
    assert len(values(tmp_path / "run", "loss_text")) == 6
    variables = model_dir.load(tmp_path / "run").params
    assert variables["text_branch"]["reverse_qformer"]["query_tokens"].shape == (77, 64)
    # Codes start and stay where vectors are, so more than half of them serve a batch of 24 x 32 vectors at once.
    assert min(values(tmp_path / "run", "codes_used")) > 0.5
    averages = variables["health"]["ema_sum"] / variables["health"]["ema_count"][:, None]
    np.testing.assert_allclose(variables["params"]["codebook"], averages, rtol=1e-2, atol=1e-4)  # but for smoothing


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        (tokenizer_qformer, {"model.itc_gradient": "none"}, "expected one of own, through_gather"),
        (tokenizer_qformer, {"optimizer.accumulation": 2}, "expected 1 in stage qformer"),
        (tokenizer_qformer, {"data.demo": False}, "data.parts is empty"),
        (tokenizer_qformer, {"start.init": "/nowhere"}, "/nowhere is neither a model directory"),
        (tokenizer_qformer, {"optimizer.schedule": "linear"}, "expected one of warmup_cosine, epochs"),
        (tokenizer_codebook, {"teacher.vision": ""}, "teacher.vision is empty"),
        (tokenizer_codebook, {"codebook.start": "magic"}, "expected '' or 'kmeans'"),
        (tokenizer_codebook, {"model.text_branch": True}, "needs teacher.text"),
        (tokenizer_codebook, {"codebook.restart_after": 1, "optimizer.accumulation": 3}, "expected 1 with codebook"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, stage_one, module, changes, words):
    config = module.get_config("tiny")
    config.update_from_flattened_dict(changes)
    shutil.copytree(stage_one / "demo_pairs", tmp_path / "demo_pairs")
    with pytest.raises(UserError, match=words):
        loop.run(config, tmp_path)


@pytest.mark.parametrize("module", [tokenizer_qformer, tokenizer_codebook])
def test_unknown_variant(module):
    with pytest.raises(UserError, match="no variant 'huge'"):
        module.get_config("huge")


def test_devices_are_eight():
    assert jax.device_count() == 8  # or the meshes above would be refused
