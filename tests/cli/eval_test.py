"""`seed-jax eval`: the list of tasks, and scoring of files without a model."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from seed_jax.cli import main
from seed_jax.evaluation.metrics import inception
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
