"""The quickstart in its shortest form, from a teacher trained in its shortest form: every step, and resuming."""

import base64
import json
import shlex
import subprocess

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
from seed_jax.recipes.quickstart import recipe, teacher_files
from seed_jax.recipes.quickstart.config import QuickstartConfig
from seed_jax.recipes.recipe import Step, remaining_seconds
from seed_jax.train.config.schema import parse
from tests.support import meshes
from tests.support.pages import command_lines
from tests.support.servers import ServerProcess


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with meshes.on_devices(1):
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Train the reader for a few steps; a decoder with random weights takes the place of the painter."""
    config = quickstart.get_config("teacher")
    config.world.update({"captions": 64, "crowded": 8})
    reader = config.stages.reader
    reader.steps, reader.log_every, reader.checkpoint.every_steps, reader.data.batch_size = 8, 1, 8, 16
    workdir = tmp_path_factory.mktemp("quickstart") / "teacher"
    training = recipe.TeacherTraining(parse(QuickstartConfig, config), workdir)
    assert [step.name for step in training.steps()] == ["images", "reader", "autoencoder", "painter", "pack"]
    training.build_images()
    reader.evaluate.update(data=str(training.corpus.held_out_images), every_steps=4, max_samples=32)
    training = recipe.TeacherTraining(parse(QuickstartConfig, config), workdir)
    training.train_reader()
    sizes = UnclipConfig.small()
    shapes = jax.eval_shape(lambda: sharding.unbox(Unclip(sizes).init(jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    model_dir.save(workdir / "painter", "unclip", {"sizes": sizes.to_dict()}, params)
    training.pack()
    return workdir


@pytest.mark.slow
def test_the_reader_learns(teacher):
    rows = [json.loads(line) for line in (teacher / "reader/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    held_out = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert len(held_out) == 2
    assert 0 < held_out[-1] != held_out[0]


@pytest.mark.slow
def test_a_teacher_continues_an_earlier_one(teacher, tmp_path):
    config = quickstart.get_config("teacher_further")
    with pytest.raises(UserError, match="teacher is empty"):
        parse(QuickstartConfig, config)
    config.teacher = str(teacher / "teacher")
    config.world.update({"captions": 32, "crowded": 8})
    for stage in config.stages.values():
        stage.update(steps=1, log_every=1)
        stage.optimizer.peak_lr = 1e-9
        stage.checkpoint.every_steps, stage.data.batch_size = 1, 8
    config.stages.autoencoder.samples = 0
    training = recipe.TeacherTraining(parse(QuickstartConfig, config), tmp_path)
    training.build_images()
    training.train_reader()
    training.train_autoencoder()
    reader, autoencoder = (model_dir.load(tmp_path / stage).params for stage in ("reader", "autoencoder"))
    vision, start, unclip = (
        model_dir.load(teacher / "teacher" / name).params for name in ("vision", "start", "unclip")
    )
    for continued, earlier in (
        (reader["params"], vision),
        (reader["heads"]["qformer"], start["qformer"]),
        (autoencoder["params"]["vae"]["decoder"], unclip["vae"]["decoder"]),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), continued, earlier)
    for name in ("unet", "text"):  # for the painter
        jax.tree.map(np.testing.assert_array_equal, autoencoder["params"][name], unclip[name])


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    config = quickstart.get_config("shortest")
    config.teacher = str(teacher / "teacher")
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    recipe.run(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_every_step_runs_and_is_measured(finished):
    _, workdir = finished
    numbers = json.loads((workdir / "results.json").read_text())
    for name in (
        *("caption_held_out_attributes", "answer_held_out_all", "rebuilt_whole", "drawn_whole", "edited_whole"),
        *("qformer_t2i_recall@1", "codebook_code_t2i_recall@1", "codebook_codes_used", "free_images_whole"),
        *("caption_known_colour", "caption_held_out_whole", "rebuilt_similarity", "codes_seen"),
    ):
        assert 0 <= numbers[name] <= 1
    report = json.loads((workdir / "evaluation/results.json").read_text())["tasks"]
    assert list(report) == [
        *("rebuilt", "caption_held_out", "caption_known", "answer_held_out", "answer_known", "drawn", "edited", "free")
    ]
    assert report["drawn"]["metrics"]["attributes"] == pytest.approx(100 * numbers["drawn_attributes"])
    assert (workdir / "evaluation/report.html").is_file()
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/webp;base64,") > 10
    assert page.count("<polyline") == 5  # a loss curve for each stage
    assert "://" not in page  # the page loads nothing
    assert len(list((workdir / "data/examples").glob("*.png"))) == 12


@pytest.fixture(scope="module")
def finished_seed1(teacher, tmp_path_factory):
    config = quickstart.get_config("seed1_shortest")
    config.teacher = str(teacher / "teacher")
    workdir = tmp_path_factory.mktemp("quickstart") / "seed1"
    recipe.run(config, workdir)
    return workdir


@pytest.mark.slow
def test_every_step_of_seed1_runs_and_is_measured_by_the_same_programs(finished_seed1):
    numbers = json.loads((finished_seed1 / "results.json").read_text())
    for name in ("caption_held_out_attributes", "rebuilt_whole", "drawn_attributes", "free_images_whole"):
        assert 0 <= numbers[name] <= 1
    assert not [name for name in numbers if name.startswith(("answer", "edited"))]
    assert "qformer_t2i_recall@1" in numbers
    page = (finished_seed1 / "report.html").read_text()
    assert page.count("<polyline") == 5  # a loss curve for each stage
    kinds = {
        name: model_dir.read_config(finished_seed1 / name)[1]["kind"] for name in ("text", "decoder", "pretrain_opt")
    }
    assert kinds == {"text": "clip_text", "decoder": "stable_diffusion", "pretrain_opt": "opt"}


@pytest.mark.slow
def test_the_commands_of_the_docs_run(finished, tmp_path, monkeypatch):
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


@pytest.mark.slow
def test_the_serve_block_of_the_readme_serves_the_quickstart(finished, tmp_path):
    _, workdir = finished
    start, ask = command_lines("README.md", "serve command")
    _, _, start = start.partition(" && ")
    words = shlex.split(start.replace("runs/quickstart", str(workdir)).replace("--port 8000", "--slots 2"))
    assert words[:2] == [".venv/bin/seed-jax", "serve"]
    server = ServerProcess(tmp_path / "log", *words[2:])
    answer = subprocess.run(
        shlex.split(ask.replace("http://127.0.0.1:8000", server.url)), capture_output=True, text=True, check=True
    )
    (image,) = json.loads(answer.stdout)["data"]
    assert base64.b64decode(image["b64_json"]).startswith(b"\x89PNG")
    assert server.stop() == 0


@pytest.mark.slow
def test_finished_steps_are_not_repeated(finished):
    config, workdir = finished
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name != "recipe.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    recipe.run(config, workdir)
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.slow
def test_other_options_need_another_workdir(finished):
    config, workdir = finished
    other = quickstart.get_config("shortest")
    other.seed = config.seed + 1
    with pytest.raises(UserError, match=r"other options.*--workdir"):
        recipe.run(other, workdir)


@pytest.mark.slow
def test_a_packed_teacher_is_small_and_unpacks(teacher, tmp_path):
    packed = teacher / teacher_files.PACKED.name
    tensors = load_file(packed)
    assert packed.stat().st_size < 8e6
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    teacher_files.unpack(tmp_path, packed)
    assert {path.name for path in tmp_path.iterdir()} == {"vision", "start", "unclip"}
    vision = model_dir.load(tmp_path / "vision").params
    trained = model_dir.load(teacher / "reader").params["params"]
    np.testing.assert_allclose(np.asarray(vision["pos_embed"]), np.asarray(trained["pos_embed"]), atol=1e-3)


@pytest.mark.slow
def test_the_packaged_teacher_fits_the_config(tmp_path):
    assert teacher_files.PACKED.stat().st_size < 8e6
    teacher_files.unpack(tmp_path)
    sizes = {name: model_dir.load(tmp_path / name).config["sizes"] for name in ("start", "unclip")}
    assert SeedTokenizerConfig.from_dict(sizes["start"]).codes_per_image == 32
    assert UnclipConfig.from_dict(sizes["unclip"]) == UnclipConfig.small()


@pytest.mark.slow
def test_a_tokenizer_may_start_with_fewer_bilateral_codes(teacher, tmp_path):
    teacher_files.unpack(tmp_path, teacher / teacher_files.PACKED.name, codes_per_image=8, causal=False)
    start = model_dir.load(tmp_path / "start")
    sizes = SeedTokenizerConfig.from_dict(start.config["sizes"])
    assert (sizes.codes_per_image, sizes.qformer.causal) == (8, False)
    all_queries = model_dir.load(teacher / "teacher/start").params["qformer"]["query_tokens"]
    np.testing.assert_array_equal(np.asarray(start.params["qformer"]["query_tokens"]), np.asarray(all_queries)[:8])


def test_a_missing_teacher_names_its_training(tmp_path):
    with pytest.raises(UserError, match=r"quickstart\.py:teacher"):
        teacher_files.unpack(tmp_path / "out", tmp_path / "missing.safetensors")


def test_the_remaining_time_follows_the_speed_so_far():
    steps = [Step("a", 10, print), Step("b", 30, print)]
    assert remaining_seconds(steps, {}) == 40
    assert remaining_seconds(steps, {"a": 20.0}) == 60


def test_bad_options_are_reported_together(tmp_path):
    config = quickstart.get_config("shortest")
    config.evaluate.batch = 0
    config.world.side = -1
    with pytest.raises(UserError, match=r"evaluate.batch.*world.side|world.side.*evaluate.batch"):
        recipe.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_variant():
    with pytest.raises(UserError, match="no variant 'huge'"):
        quickstart.get_config("huge")


@pytest.mark.parametrize("name", ["times.json", "recipe.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"teacher": "long"}'])
def test_damaged_records_of_a_recipe_are_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*remove it|other options"):
        recipe.run(quickstart.get_config("shortest"), tmp_path)


def test_a_bucket_or_url_is_refused_before_anything_is_done():
    for workdir in ("gs://bucket/run", "file:///tmp/run"):
        with pytest.raises(UserError, match="local directory"):
            recipe.run(quickstart.get_config("shortest"), workdir)
