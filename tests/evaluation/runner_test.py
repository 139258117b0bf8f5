"""Tasks end to end on a random model: scores, submissions, resuming, shards, bad samples, other runs."""

import concurrent.futures
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_jax.cli import main
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_model import EvalModel
from seed_jax.evaluation.metrics.clip_similarity import paired_similarity
from seed_jax.evaluation.report.files import write_report
from seed_jax.evaluation.runner import RunOptions, Shard, run_task
from seed_jax.evaluation.score import score_captions, score_vqa
from seed_jax.evaluation.task import DataOptions, Sample, Scores, Task
from seed_jax.evaluation.tasks import find_task
from seed_jax.inference.seed_llama import SeedLlama
from tests.evaluation import datasets


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One model for all tests: what one of them compiles serves the others."""
    directory = datasets.write_model(tmp_path_factory.mktemp("models"))
    (directory.parent / "clip").mkdir()
    datasets.write_clip(directory.parent / "clip")
    tokenizer = datasets.write_text_tokenizer(directory.parent / "text_tokenizer")
    return EvalModel(SeedLlama.load(directory), directory.parent / "clip", tokenizer)


@pytest.fixture
def evaluate(model, tmp_path):
    """Run tasks on the data in tmp_path / "data"; return the output directory."""

    def evaluate(*names, out="out", split=None, wordnet=None, decoding=None, **options):
        directory = tmp_path / out
        settings = {"batch_size": 2, "decoding": {"beams": 2, "max_new_tokens": 6, **(decoding or {})}, **options}
        runs = []
        for name in names:
            task = find_task(name)
            if "letters" in name:
                settings["decoding"] = {"max_new_tokens": 6}
            data = DataOptions(tmp_path / "data", split=split, wordnet=wordnet)
            run = run_task(task, data, directory / name, RunOptions(**settings), {"weights": "random"}, lambda: model)
            runs += [] if run is None else [run]
        if len(runs) == len(names):
            write_report(directory, runs)
        return directory

    return evaluate


def results(directory):
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_captions_are_scored_as_their_submission_is(evaluate, tmp_path):
    datasets.karpathy(tmp_path / "data")
    out = evaluate("coco_caption")
    found = results(out / "coco_caption")
    predictions = lines(out / "coco_caption" / "predictions.jsonl")
    assert [line["id"] for line in predictions] == ["1", "2", "3", "4", "5"]
    references = {str(n + 1): [f"A dog number {n} on a mat.", "A cat in a hat"] for n in range(5)}
    path = datasets.write_json(tmp_path / "references.json", references)
    expected = score_captions(path, out / "coco_caption" / "submission.json")
    for name in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert found["metrics"][name] == pytest.approx(100 * expected[name], abs=1e-9)
    assert found["intervals"]["ROUGE_L"]["low"] <= found["metrics"]["ROUGE_L"] <= found["intervals"]["ROUGE_L"]["high"]
    assert found["decoding"]["length_penalty_on"] == "sequence"
    table = (out / "report.md").read_text()
    assert "124.5" in table
    assert "zero-shot" in table
    page = (out / "report.html").read_text()
    assert "data:image/webp;base64" in page
    assert "http" not in page.replace("http-equiv", "")


def test_vqa_is_scored_as_its_submission_is(evaluate, tmp_path):
    data = datasets.vqa(tmp_path / "data")
    out = evaluate("vqav2")
    found = results(out / "vqav2")
    expected = score_vqa(out / "vqav2/submission.json", data / "v2_mscoco_val2014_annotations.json")
    assert found["metrics"]["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    assert found["groups"].keys() == {"what", "is"}


def test_several_tasks_share_a_report(evaluate, tmp_path):
    data = tmp_path / "data"
    datasets.vqa(data, prefix="")
    datasets.nocaps(data)
    datasets.textvqa(data)
    datasets.vizwiz(data)
    datasets.gqa(data)
    names = ["okvqa", "nocaps", "textvqa", "vizwiz", "gqa"]
    out = evaluate(*names)
    assert list(results(out)["tasks"]) == names
    assert results(out / "nocaps")["groups"].keys() == {"in-domain", "out-domain"}
    submission = json.loads((out / "gqa/submission.json").read_text())
    assert submission[0].keys() == {"questionId", "prediction"}
    assert json.loads((out / "vizwiz/submission.json").read_text())[0]["image"] == "VizWiz_val_00000000.jpg"
    assert json.loads((out / "textvqa/submission.json").read_text())[0]["question_id"] == 34602


def test_a_test_split_is_answered_and_not_scored(evaluate, tmp_path):
    datasets.vqa(tmp_path / "data", split="test2015")
    out = evaluate("vqav2", split="test2015")
    assert results(out / "vqav2")["metrics"] == {}
    assert len(json.loads((out / "vqav2/submission.json").read_text())) == 4


def test_a_killed_run_resumes_to_the_same_bytes(evaluate, tmp_path):
    datasets.vqa(tmp_path / "data", count=5)
    whole = evaluate("vqav2", out="whole")
    expected = (whole / "vqav2/predictions.jsonl").read_bytes()
    out = evaluate("vqav2", out="killed")
    path = out / "vqav2/predictions.jsonl"
    for size in (0, 1, len(expected) // 2, expected.index(b"\n") + 1, len(expected) - 1):
        path.write_bytes(expected[:size])
        (out / "vqav2/results.json").unlink()
        evaluate("vqav2", out="killed")
        assert path.read_bytes() == expected
        assert results(out / "vqav2") == results(whole / "vqav2")


def test_shards_are_scored_when_the_last_one_is_complete(evaluate, tmp_path):
    datasets.vqa(tmp_path / "data", count=5)
    whole = evaluate("vqav2", out="whole")
    out = evaluate("vqav2", shard=Shard(1, 2), out="parts")
    assert not (out / "vqav2/results.json").exists()
    evaluate("vqav2", shard=Shard(2, 2), out="parts")
    assert results(out / "vqav2")["per_sample"] == results(whole / "vqav2")["per_sample"]
    ids = [line["id"] for line in lines(out / "vqav2/predictions.jsonl")]
    assert ids == ["10", "20", "30", "40", "50"]


class AlwaysYes(Task):
    """Answers at once, so that shards meet in their first writes."""

    name, metric = "always_yes", "accuracy"

    def read(self, options):
        return [Sample(str(number), text="?") for number in range(16)]

    def predict(self, batch, model, params):
        return [{"prediction": "yes"} for _ in batch]

    def score(self, samples, predictions):
        return Scores({"accuracy": 100.0}, {"accuracy": [100.0] * len(samples)})


@pytest.fixture
def slow_file_system(monkeypatch):
    """Answer whether a file exists late, so that it may exist by then."""
    exists = Path.exists

    def late(path):
        answer = exists(path)
        time.sleep(0.02 * (not answer))
        return answer

    monkeypatch.setattr(Path, "exists", late)


@pytest.mark.usefixtures("slow_file_system")
def test_shards_that_start_at_the_same_moment_share_a_run(tmp_path):
    """As the hosts of a pod do: one writes predictions while another has not yet seen the run's description."""
    task, data = AlwaysYes(), DataOptions(tmp_path)
    for attempt in range(3):
        together = threading.Barrier(8)

        def run(index, directory=tmp_path / str(attempt), together=together):
            together.wait()
            return run_task(task, data, directory, RunOptions(shard=Shard(index, 8)), {"weights": "none"}, lambda: None)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            runs = list(pool.map(run, range(1, 9)))
        assert any(run is not None for run in runs)
        assert len(lines(tmp_path / str(attempt) / "predictions.jsonl")) == 16


def test_unreadable_images_are_counted_and_named(evaluate, tmp_path):
    datasets.vqa(tmp_path / "data")
    (tmp_path / "data/val2014/COCO_val2014_000000000002.jpg").unlink()
    with pytest.raises(UserError, match=r"COCO_val2014_000000000002\.jpg"):
        evaluate("vqav2")
    found = results(evaluate("vqav2", max_bad=1) / "vqav2")
    assert found["scored"] == 3
    assert "sample 20" in found["bad"][0]


@pytest.mark.parametrize(
    ("options", "key"), [({"limit": 2}, "limit"), ({"split": "val2017"}, "samples"), ({"batch_size": 3}, "batch_size")]
)
def test_results_of_another_run_are_refused(evaluate, tmp_path, options, key):
    datasets.vqa(tmp_path / "data")
    datasets.vqa(tmp_path / "data", count=3, split="val2017")
    evaluate("vqav2")
    with pytest.raises(UserError, match=key):
        evaluate("vqav2", **options)


def test_annotations_of_another_split_are_named(evaluate, tmp_path):
    path = datasets.vqa(tmp_path / "data") / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"].pop(2)
    datasets.write_json(path, content)
    with pytest.raises(UserError, match=r"question 30 .*split"):
        evaluate("vqav2")
    assert not (tmp_path / "out/vqav2/predictions.jsonl").exists()


def test_compare_puts_two_runs_side_by_side(evaluate, tmp_path, capsys):
    datasets.vqa(tmp_path / "data")
    evaluate("vqav2", out="one")
    evaluate("vqav2", decoding={"seed": 1, "temperature": 3.0}, out="other")
    assert main(["eval", "compare", str(tmp_path / "one"), str(tmp_path / "other"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]["vqav2"]
    row = found["metrics"]["accuracy"]
    assert row["difference"] == pytest.approx(row["one"] - row["other"])
    assert 0 < row["p_randomization"] <= 1
    assert any("decoding" in note for note in found["notes"])
    assert main(["eval", "compare", str(tmp_path / "one"), str(tmp_path / "other")]) == 0
    assert "| vqav2 | accuracy | 4 |" in capsys.readouterr().out
    assert main(["eval", "compare", str(tmp_path / "one"), str(tmp_path / "data")]) == 2


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_bad_shards(text):
    with pytest.raises(UserError, match="--shard"):
        Shard.parse(text)


def test_choices_are_ranked_by_every_rule(evaluate, tmp_path):
    datasets.seed_bench(tmp_path / "data")
    datasets.mmbench(tmp_path / "data")
    out = evaluate("seed_bench", "mmbench")
    found = results(out / "seed_bench")
    assert found["metrics"].keys() == {"accuracy", "accuracy_token_mean", "accuracy_character_mean", "accuracy_pmi"}
    assert found["groups"].keys() == {"Scene Understanding", "Instance Identity"}
    assert any("SHA-256" in note for note in found["notes"])
    (line, *_) = lines(out / "seed_bench/predictions.jsonl")
    sums = line["log_probabilities"]["sum"]
    assert line["prediction"] == "ABCD"[sums.index(max(sums))]
    circular = results(out / "mmbench")
    assert len(circular["per_sample"]["circular_accuracy"]) == 2
    assert circular["metrics"]["circular_accuracy"] <= 100
    page = (out / "report.html").read_text()
    assert "True choice" in page
    assert "Question: How many dogs?\nAnswer:" in page or "How many dogs?</p>" in page  # the prompt
    out = evaluate("seed_bench_letters", "mmbench_letters", out="letters")
    assert "name no option" in results(out / "seed_bench_letters")["notes"][0]


def test_questions_about_videos_from_extracted_frames(evaluate, tmp_path):
    datasets.video_questions(tmp_path / "data")
    datasets.nextqa(tmp_path / "data")
    out = evaluate("msvd_qa", "nextqa")
    assert results(out / "msvd_qa")["metrics"].keys() == {"accuracy", "accuracy_normalized"}
    (line,) = lines(out / "nextqa/predictions.jsonl")
    assert len(line["log_probabilities"]["sum"]) == 5


def test_codes_are_counted_and_generated_images_checked(evaluate, tmp_path):
    datasets.karpathy(tmp_path / "data", count=2)
    out = evaluate("codebook", "valid_images", decoding={"max_new_tokens": 40})
    found = results(out / "codebook")["metrics"]
    assert found["used_codes"] + found["dead_codes"] == datasets.TOKENIZER.num_codes
    valid = results(out / "valid_images")["metrics"]
    assert valid["valid_greedy_grammar"] == valid["valid_sampled_grammar"] == valid["valid_beams_grammar"] == 100
    assert valid["valid_sampled"] < 100  # random weights rarely stop after 32 codes


@pytest.mark.slow
def test_open_answers_about_videos_are_scored_with_wordnet_only(evaluate, tmp_path):
    datasets.nextoe(tmp_path / "data")
    out = evaluate("nextqa_open", out="unscored")
    assert results(out / "nextqa_open")["metrics"] == {}
    assert "--wordnet" in results(out / "nextqa_open")["notes"][0]
    out = evaluate("nextqa_open", wordnet=datasets.wordnet(tmp_path / "wordnet"))
    found = results(out / "nextqa_open")
    assert found["metrics"].keys() == {"WUPS", "WUPS_0.9"}
    assert found["groups"].keys() == {"DO", "DC", "CW"}
    submission = json.loads((out / "nextqa_open/submission.json").read_text())
    assert submission["4010069381"].keys() == {"1", "2", "3"}


def test_retrieval_by_embeddings_and_by_codes(evaluate, tmp_path):
    datasets.karpathy(tmp_path / "data", count=4)
    out = evaluate("retrieval")
    lists = lines(out / "retrieval/predictions.jsonl")
    assert [len(line["texts"]) for line in lists] == [2, 2, 2, 2]
    found = results(out / "retrieval")["metrics"]
    assert found["embeddings_t2i_recall@5"] == found["codes_i2t_recall@10"] == 100
    images = np.array([line["code_embedding"] for line in lists])
    texts = np.array([text for line in lists for text in line["texts"]])
    best = (texts @ images.T).argmax(1)
    assert found["codes_t2i_recall@1"] == pytest.approx(100 * (best == np.repeat(np.arange(4), 2)).mean())


def test_retrieval_by_likelihood_ranks_every_caption_and_every_image(evaluate, tmp_path):
    datasets.karpathy(tmp_path / "data", count=4)
    out = evaluate("retrieval_likelihood")
    (line, *others) = lines(out / "retrieval_likelihood/predictions.jsonl")
    assert len(line["log_p"]) == len(line["log_p_image"]) == 8
    assert all(other["log_prior"] == pytest.approx(line["log_prior"], rel=1e-5) for other in others)
    found = results(out / "retrieval_likelihood")["metrics"]
    assert found["pmi_i2t_recall@10"] == found["pmi_t2i_recall@5"] == 100
    images = np.array([one["log_p_image"] for one in (line, *others)]).T  # captions, images
    prior = np.array([one["log_prior_image"] for one in (line, *others)])
    right = (images - prior).argmax(1) == np.repeat(np.arange(4), 2)
    assert found["pmi_t2i_recall@1"] == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("name", ["coco_caption", "valid_images", "retrieval_likelihood", "text_to_image"])
def test_a_split_without_images_is_named(evaluate, tmp_path, name):
    datasets.karpathy(tmp_path / "data")
    with pytest.raises(UserError, match=r"no image of the split 'dev'"):
        evaluate(name, split="dev")


@pytest.mark.slow
def test_drawn_images_are_compared_with_true_ones(evaluate, model, tmp_path):
    datasets.karpathy(tmp_path / "data", count=3)
    datasets.vist(tmp_path / "data")
    names = ("reconstruction", "text_to_image", "visual_storytelling")
    out = evaluate(*names, decoding={"max_new_tokens": 34})
    for name in names:
        found = results(out / name)["metrics"]
        assert found.keys() == {"clip_similarity", "clip_text_score"}
        assert -100 <= found["clip_similarity"] <= 100
    (first, *_) = lines(out / "reconstruction/predictions.jsonl")
    truth = model.clip.embed_images([Image.open(tmp_path / "data/val2014/COCO_val2014_000000000001.jpg")])
    (drawn,) = model.draw([tuple(first["codes"])])
    assert first["clip_similarity"] == pytest.approx(
        paired_similarity(model.clip.embed_images([drawn]), truth)[0], abs=1e-5
    )
