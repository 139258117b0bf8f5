"""`seed-jax eval`: the list of tasks, and scoring of files without a model."""

import json

import pytest

from seed_jax.cli import main


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
