"""`seed-jax eval`: the list of tasks, and scoring of files without a model."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from seed_jax import evaluate
from seed_jax.cli import main
from seed_jax.evaluation.metrics import inception
from seed_jax.evaluation.tasks import all_tasks, find_task
from seed_jax.train.config import load_config
from tests.evaluation import datasets
from tests.support import philox


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_list_names_tasks_with_the_papers_numbers(capsys):
    assert main(["eval", "--list"]) == 0
    text = capsys.readouterr().out
    assert "coco_caption" in text
    assert "124.5 CIDEr" in text


def test_captions_are_scored_to_one_json_object(tmp_path, capsys):
    references = write(tmp_path / "r.json", {"1": ["a dog on a mat", "a dog"], "2": ["a red ball"]})
    predictions = write(tmp_path / "p.json", {"1": "a dog on a mat", "2": "a blue ball"})
    assert main(["eval", "score", "caption", "--references", references, "--predictions", predictions]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"} <= found.keys()
    assert "per_image" not in found
    command = ["eval", "score", "caption", "--references", references, "--predictions", predictions, "--per-image"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["order"] == ["1", "2"]


def test_answers_are_scored_with_or_without_annotations(tmp_path, capsys):
    answers = ["yes"] * 4 + ["no"] * 6
    own = write(tmp_path / "own.json", [{"question_id": 1, "prediction": "Yes.", "answers": answers}])
    assert main(["eval", "score", "vqa", "--predictions", own]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 100
    annotations = write(
        tmp_path / "a.json", {"annotations": [{"question_id": 1, "answers": [{"answer": text} for text in answers]}]}
    )
    predictions = write(tmp_path / "p.json", [{"question_id": 1, "answer": "no"}])
    assert main(["eval", "score", "vqa", "--annotations", annotations, "--predictions", predictions]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "coco_caption"),
        ([], "--list"),
        (["vqav2"], "--model and --data and --out"),
        (["score", "caption", "--references", "none.json", "--predictions", "none.json"], "none.json"),
        (["score", "fid", "--images", "none", "--reference", "none", "--inception", "none.pth"], "none"),
        (["compare", "none", "none"], "results"),
    ],
)
def test_wrong_arguments_are_one_sentence(words, message, capsys):
    assert main(["eval", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_task_runs_from_model_directories_and_prints_its_score(tmp_path, capsys):
    model = datasets.write_model(tmp_path / "models")
    datasets.gqa(tmp_path / "data")
    words = ["--data", tmp_path / "data", "--out", tmp_path / "out", "--beams", 1, "--max-new-tokens", 4]
    command = ["eval", "gqa", "--model", str(model), *map(str, words)]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith("gqa (1 samples): accuracy ")
    found = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["gqa"]
    assert len(found["model"]["language_model"]) == 32
    assert found["decoding"]["beams"] == 1
    assert main(command) == 0  # nothing is left to predict
    assert capsys.readouterr().out == first
    assert main([*command, "--max-new-tokens", "5"]) == 2
    assert "decoding" in capsys.readouterr().err
    assert main(["eval", "reconstruction", *command[2:]]) == 2
    assert "--clip" in capsys.readouterr().err


def test_open_answers_are_scored_with_wordnet(tmp_path, capsys):
    table = datasets.nextoe(tmp_path, split="test")
    predictions = write(tmp_path / "p.json", {"4010069381": {"1": "the dog", "2": "two", "3": "sleeping"}})
    words = ["--annotations", table, "--predictions", predictions, "--wordnet", datasets.wordnet(tmp_path / "wordnet")]
    assert main(["eval", "score", "wups", *map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == 3
    assert found["per_question_type"]["DO"] == 100  # the second answer, a dog
    assert found["per_question_type"]["DC"] == 100
    assert 0 <= found["WUPS_0.9"] <= found["WUPS"] <= 100
    write(tmp_path / "p.json", {"1": {"1": "a"}})
    assert main(["eval", "score", "wups", *map(str, words)]) == 2
    assert "another split" in capsys.readouterr().err


def test_a_config_runs_tasks_and_the_report_is_written_again(tmp_path, capsys):
    """Two entries of one task with settings of their own, one directory each; the words of the short form still do."""
    model = datasets.write_model(tmp_path / "models")
    datasets.gqa(tmp_path / "data/gqa")
    config = tmp_path / "mine.py"
    config.write_text(CONFIG)
    command = ["eval", "--config", str(config), "--model", str(model), "--out", str(tmp_path / "out")]
    command += ["--data", str(tmp_path / "data"), "--set", "tasks.long.decoding.max_new_tokens=5"]
    assert main(command) == 0
    out = tmp_path / "out"
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert {name: task["decoding"]["max_new_tokens"] for name, task in tasks.items()} == {"gqa": 4, "long": 5}
    before = (out / "report.md").read_text()
    for name in ("report.md", "report.html", "results.json", "gqa/results.json"):
        (out / name).unlink()
    assert main(["eval", "report", str(out)]) == 0
    assert (out / "report.md").read_text() == before
    assert "long" in (out / "report.html").read_text()
    capsys.readouterr()
    assert main([*command, "--set", "tasks.long.limits=1"]) == 2
    assert "did you mean tasks.long.limit" in capsys.readouterr().err
    assert main(["eval", "vqav2", *command[1:]]) == 2
    assert "no task vqav2" in capsys.readouterr().err
    (tmp_path / "data/gqa/testdev_balanced_questions.json").write_text("{}")
    assert main(["eval", "report", str(out)]) == 2
    assert "has changed since" in capsys.readouterr().err


CONFIG = """
import ml_collections
from seed_jax.train.config import base
from seed_jax.train.config.evaluation import EvaluationConfig, TaskConfig

def get_config():
    config = base(EvaluationConfig)
    decoding = {"beams": 1, "max_new_tokens": 4}
    config.tasks.gqa = base(TaskConfig, data="gqa", decoding=decoding)
    config.tasks.long = base(TaskConfig, task="gqa", data="gqa", decoding=decoding)
    return config
"""


def test_the_papers_config_has_the_protocol_of_the_tasks():
    """Decoding is written out in the config, so that a change of either is noticed."""
    parsed, tasks = evaluate.parse_config(load_config("eval:paper"))
    assert parsed.stage == "evaluation"
    papers = {name for name, task in all_tasks().items() if task.paper}
    assert {task.task or name for name, task in tasks.items()} == papers
    for name, task in tasks.items():
        own = find_task(task.task or name).sampling_params
        assert dataclasses.replace(own, **task.decoding) == own, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--set", "tasks.coco_caption.decoding={'beam': 5}"], "decoding"),
        (["--set", "tasks.coco_caption.data="], "tasks.coco_caption.data is empty"),
        (["--set", "tasks.coco_caption.batch_size=0"], "tasks.coco_caption.batch_size"),
        (["--annotations", "x.json"], "--annotations belongs to one task"),
        (["--limit", "0"], "--limit is 0"),
        (["--shard", "3/2"], "--shard"),
    ],
)
def test_wrong_options_of_a_config_are_one_sentence(changes, message, tmp_path, capsys):
    command = ["eval", "--config", "eval:captions", "--model", "none", "--out", str(tmp_path / "out")]
    assert main([*command, *changes]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_configs_of_training_are_no_evaluations(tmp_path, capsys):
    assert main(["eval", "--config", "pretrain:tiny", "--model", "m", "--out", str(tmp_path / "out")]) == 2
    assert "does not describe an evaluation" in capsys.readouterr().err


@pytest.mark.slow
def test_the_frechet_distance_of_equal_directories_is_zero(tmp_path, capsys):
    for folder in ("one", "other"):
        for number in range(2):
            datasets.write_image(tmp_path / folder / f"{number}.png", number)
    weights = {
        name: np.ones(shape, np.float32)
        if name.endswith("running_var")
        else np.asarray(philox.normal(0, name, shape) / max(1, int(np.prod(shape[1:]))) ** 0.5, np.float32)
        for name, shape in inception.expected_shapes().items()
    }
    save_file(weights, tmp_path / "inception.safetensors")
    words = ["--images", tmp_path / "one", "--reference", tmp_path / "other", "--batch-size", 2]
    words += ["--inception", tmp_path / "inception.safetensors"]
    assert main(["eval", "score", "fid", *map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fid"] == pytest.approx(0, abs=1e-3)
    assert found["images"] == found["reference_images"] == 2
    statistics = tmp_path / "statistics.npz"
    words[3] = statistics
    assert main(["eval", "score", "fid", *map(str, words)]) == 2
    assert "statistics.npz" in capsys.readouterr().err
    words[3] = tmp_path / "other"
    assert main(["eval", "score", "fid", *map(str, words), "--save-statistics", str(statistics)]) == 0
    words[3] = statistics
    assert main(["eval", "score", "fid", *map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["fid"] == pytest.approx(0, abs=1e-3)
    assert "pytorch-fid" in found["scale"]
