"""The quickstart in its shortest form, from a teacher trained in its shortest form: every part, and again."""

import json
import shlex

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import quickstart
from seed_jax import cli, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.quickstart import recipe, teacher_files
from seed_jax.quickstart.measure import Example, Measured
from seed_jax.quickstart.report_page import write
from tests.support import meshes
from tests.support.pages import command_lines


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with meshes.on_devices(1):
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Train a smaller teacher: the reader for a few steps; a decoder of random weights stands in for the painter."""
    config = quickstart.get_config("teacher")
    config.world.update({"captions": 64, "crowded": 8})
    reader = config.stages.reader
    reader.steps, reader.log_every, reader.checkpoint.every_steps, reader.data.batch_size = 8, 1, 8, 16
    workdir = tmp_path_factory.mktemp("quickstart") / "teacher"
    steps = {step.name: step for step in recipe._teacher_steps(config, workdir)}
    assert list(steps) == ["pictures", "reader", "autoencoder", "painter", "pack"]
    steps["pictures"].run()
    steps["reader"].run()
    sizes = UnclipConfig.small()
    shapes = jax.eval_shape(lambda: sharding.unbox(Unclip(sizes).init(jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    model_dir.save(workdir / "painter", "unclip", {"sizes": sizes.to_dict()}, params)
    steps["pack"].run()
    return workdir


def test_the_reader_learns(teacher):
    rows = [json.loads(line) for line in (teacher / "reader/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    config = quickstart.get_config("shortest")
    config.teacher = str(teacher / "teacher")
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    recipe.run(config, workdir)
    return config, workdir


def test_the_whole_chain_runs_and_is_measured(finished):
    _, workdir = finished
    numbers = json.loads((workdir / "results.json").read_text())
    for name in (
        *("caption_held_attributes", "answer_held_all", "rebuilt_whole", "drawn_whole", "edited_whole"),
        *("qformer_t2i_recall@1", "codebook_code_t2i_recall@1", "codebook_codes_used", "free_images_whole"),
    ):
        assert 0 <= numbers[name] <= 1
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 10
    assert "://" not in page  # nothing is fetched
    assert (workdir / "decoder/drawings.png").is_file()
    assert len(list((workdir / "data/examples").glob("*.png"))) == 12


def test_the_commands_of_the_page_run(finished, tmp_path, monkeypatch, capsys):
    _, workdir = finished
    monkeypatch.chdir(tmp_path)
    (tmp_path / "W").symlink_to(workdir)
    commands = command_lines("docs/quickstart.md", "commands")
    assert len(commands) == 3
    assert all(line.startswith("seed-jax ") for line in commands)
    for line in commands:
        assert cli.main(shlex.split(line)[1:]) == 0
    assert (tmp_path / "drawn/contact_sheet.png").is_file()
    assert len(list((tmp_path / "drawn").glob("0*.png"))) == 12 * 5


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    config, workdir = finished
    monkeypatch.setattr(recipe, "_train", lambda *_: pytest.fail("trained again"))
    recipe.run(config, workdir)


def test_other_settings_need_another_workdir(finished):
    config, workdir = finished
    other = quickstart.get_config("shortest")
    other.seed = config.seed + 1
    with pytest.raises(UserError, match="was begun with other settings"):
        recipe.run(other, workdir)


def test_a_packed_teacher_is_small_and_unpacks_to_what_was_trained(teacher, tmp_path):
    packed = teacher / teacher_files.PACKED.name
    tensors = load_file(packed)
    assert packed.stat().st_size < 8e6
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    teacher_files.unpack(tmp_path, packed)
    assert {path.name for path in tmp_path.iterdir()} == {"vision", "start", "unclip"}


def test_the_teacher_of_the_package_is_there_and_fits_the_config(tmp_path):
    assert teacher_files.PACKED.stat().st_size < 8e6
    teacher_files.unpack(tmp_path)
    sizes = {name: model_dir.load(tmp_path / name).config["sizes"] for name in ("start", "unclip")}
    assert SeedTokenizerConfig.from_dict(sizes["start"]).codes_per_image == 32
    assert UnclipConfig.from_dict(sizes["unclip"]) == UnclipConfig.small()


def test_a_tokenizer_may_start_with_fewer_codes_that_know_of_each_other(teacher, tmp_path):
    teacher_files.unpack(tmp_path, teacher / teacher_files.PACKED.name, codes=8, causal=False)
    found = model_dir.load(tmp_path / "start")
    sizes = SeedTokenizerConfig.from_dict(found.config["sizes"])
    assert (sizes.codes_per_image, sizes.qformer.causal) == (8, False)
    whole = model_dir.load(teacher / "teacher/start").params["qformer"]["query_tokens"]
    np.testing.assert_array_equal(found.params["qformer"]["query_tokens"], np.asarray(whole)[:8])


def test_time_left_goes_by_the_speed_so_far():
    steps = [recipe.Step("a", 10, print), recipe.Step("b", 30, print)]
    assert recipe._left(steps, {}) == 40
    assert recipe._left(steps, {"a": 20.0}) == 60


def test_the_page_escapes_what_a_model_said(tmp_path):
    example = Example("describe", (np.zeros((4, 4, 3), np.uint8),), "what?", "<script>", None, False)
    numbers = dict.fromkeys(("caption_held_attributes", "answer_held_all"), 0.5)
    numbers |= {f"{name}_attributes": 1.0 for name in ("rebuilt", "drawn", "edited")}
    page = write(tmp_path, Measured(numbers, (example,)), {"data": 1.0}).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "not yet" in page
    assert "reached" in page


def test_unknown_variant():
    with pytest.raises(UserError, match="no variant 'huge'"):
        quickstart.get_config("huge")
