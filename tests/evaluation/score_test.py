"""Scores of files in the forms that people have, and bad records named."""

import json

import numpy as np
import pytest
from PIL import Image

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics import inception
from seed_jax.evaluation.metrics.frechet import feature_statistics, save_statistics
from seed_jax.evaluation.score import score_captions, score_fid, score_vqa
from tests.support import golden


@pytest.fixture
def write(tmp_path):
    """Write JSON, or JSON lines, and return the path."""

    def write(name, content):
        path = tmp_path / name
        lines = name.endswith(".jsonl")
        path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content), encoding="utf-8")
        return path

    return write


# Captions.


@pytest.fixture(scope="module")
def recorded_captions():
    return golden.load_json("evaluation/caption_metrics.json")


def coco_annotations(captions):
    annotations = [
        {"id": number, "image_id": int(image), "caption": caption}
        for number, (image, caption) in enumerate((image, caption) for image in captions for caption in captions[image])
    ]
    return {"images": [{"id": int(image)} for image in captions], "annotations": annotations}


def coco_results(captions):
    return [{"image_id": int(image), "caption": caption} for image, caption in captions.items()]


def mapping(captions):
    return captions


@pytest.mark.parametrize(
    ("references_form", "predictions_form", "predictions_name"),
    [
        (mapping, mapping, "predictions.json"),
        (coco_annotations, coco_results, "results.json"),
        (mapping, coco_results, "predictions.jsonl"),
    ],
)
def test_captions_in_every_form_score_as_pycocoevalcap(
    write, recorded_captions, references_form, predictions_form, predictions_name
):
    references = write("references.json", references_form(recorded_captions["references"]))
    predictions = write(predictions_name, predictions_form(recorded_captions["candidates"]))
    scores = score_captions(references, predictions, per_image=True)
    names = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    for name in names:
        assert scores[name] == pytest.approx(recorded_captions["scores"][name], abs=1e-9)
        np.testing.assert_allclose(scores["per_image"][name], recorded_captions["per_image"][name], atol=1e-9)
    assert scores["order"] == recorded_captions["order"]
    assert scores["images"] == 169
    assert set(scores) == {*names, "images", "order", "per_image"}
    json.dumps(scores)


def test_missing_predictions_are_allowed_on_request_only(write):
    references = write("references.json", {"1": ["a dog"], "2": ["a cat"], "3": ["a bird"]})
    predictions = write("predictions.json", {"3": "a bird", "1": "a dog"})
    with pytest.raises(UserError, match=r"predictions\.json.*image 2"):
        score_captions(references, predictions)
    assert score_captions(references, predictions, allow_missing=True)["images"] == 2


def test_line_separators_are_reported(write):
    references = write("references.json", {"1": ["a\u2028dog"], "2": ["a cat"]})
    scores = score_captions(references, write("predictions.json", {"1": "a dog", "2": "a cat"}))
    assert scores["captions_with_line_separators"] == 1
    assert scores["Bleu_1"] == pytest.approx(1)


def test_line_separators_do_not_end_a_json_line(write, tmp_path):
    references = write("references.json", {"1": ["a\u2028dog"], "2": ["a cat"]})
    predictions = tmp_path / "predictions.jsonl"
    records = [{"image_id": 1, "caption": "a\u2028dog"}, {"image_id": 2, "caption": "a cat"}]
    predictions.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    assert score_captions(references, predictions)["Bleu_1"] == pytest.approx(1)


REFERENCES = {"1": ["a dog"], "2": ["a cat"]}
PREDICTIONS = {"1": "a dog", "2": "a cat"}


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        (REFERENCES, PREDICTIONS | {"7": "x"}, "predictions.json, image 7 .*another split"),
        (REFERENCES | {"3": []}, PREDICTIONS, "references.json, image 3 has no captions"),
        (REFERENCES | {"3": [5]}, PREDICTIONS, "references.json, image 3.*a number"),
        (REFERENCES | {"3": "a dog"}, PREDICTIONS, "references.json, image 3.*expected a list"),
        ([1], PREDICTIONS, "references.json holds a list"),
        (REFERENCES, PREDICTIONS | {"2": ["a cat"]}, "predictions.json, image 2.*found a list"),
        (REFERENCES, {"1": None}, "predictions.json, image 1.*nothing"),
        (REFERENCES, [{"image_id": 1, "caption": "a"}] * 2, r"predictions.json\[1\].*second caption of image 1"),
        (REFERENCES, [{"image": 1, "caption": "a"}], r"predictions.json\[0\].*image_id"),
        (REFERENCES, [{"image_id": 1}], r"predictions.json\[0\].*caption"),
        (REFERENCES, ["a dog"], r"predictions.json\[0\].*text"),
        (REFERENCES, 3, "predictions.json.*a number"),
        ({}, {}, "no predictions"),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]},
            PREDICTIONS,
            r"annotations\[0\].*image 2",
        ),
        ({"images": [{"id": 1}], "annotations": []}, PREDICTIONS, "image 1 has no captions"),
    ],
)
def test_bad_captions_are_named(write, references, predictions, message):
    with pytest.raises(UserError, match=message):
        score_captions(write("references.json", references), write("predictions.json", predictions))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b'{"1": "a", "1": "b"}', "'1' occurs twice"),
        (b"\xff\xfe\x00", "Cannot read"),
        (b"", "not valid JSON"),
    ],
)
def test_broken_files_are_named(write, tmp_path, content, message):
    (tmp_path / "predictions.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        score_captions(write("references.json", REFERENCES), tmp_path / "predictions.json")
    assert "predictions.json" in str(raised.value)
    with pytest.raises(UserError, match=r"missing\.json does not exist"):
        score_captions(tmp_path / "missing.json", tmp_path / "predictions.json")


# Answers.


@pytest.fixture(scope="module")
def recorded_answers():
    return golden.load_json("evaluation/vqa_accuracy.json")


def official_annotations(cases):
    return {
        "data_subtype": "val2014",
        "annotations": [
            {
                "question_id": number,
                "image_id": number,
                "question_type": "what is" if number % 3 else "how many",
                "answer_type": "other",
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": index}
                    for index, answer in enumerate(case["answers"], 1)
                ],
            }
            for number, case in enumerate(cases)
        ],
    }


def test_official_vqa_files(write, recorded_answers):
    cases = recorded_answers["cases"]
    annotations = write("annotations.json", official_annotations(cases))
    results = [{"question_id": number, "answer": case["prediction"]} for number, case in enumerate(cases)]
    scores = score_vqa(write("results.json", results[::-1]), annotations, per_question=True)
    assert scores["accuracy"] == recorded_answers["overall"]
    assert scores["per_question"] == [case["accuracy"] for case in cases]
    assert scores["order"] == [str(number) for number in range(300)]
    assert scores["per_answer_type"] == {"other": scores["accuracy"]}
    assert scores["per_question_type"]["how many"] == pytest.approx(
        np.mean([case["accuracy"] for case in cases[::3]]), abs=1e-5
    )
    json.dumps(scores)


def test_predictions_that_hold_their_answers(write, recorded_answers):
    cases = recorded_answers["cases"]
    records = [
        {"question_id": f"q{number}", "prediction": case["prediction"], "answers": case["answers"]}
        for number, case in enumerate(cases)
    ]
    for name in ("records.json", "records.jsonl"):
        scores = score_vqa(write(name, records))
        assert scores == {"accuracy": recorded_answers["overall"], "questions": 300}


def test_textvqa_and_vizwiz_files(write):
    answers = ["yes"] * 10
    textvqa = write("textvqa.json", {"data": [{"question_id": 3, "answers": answers}]})
    assert score_vqa(write("a.json", [{"question_id": 3, "answer": "yes"}]), textvqa)["accuracy"] == 100
    vizwiz = write("vizwiz.json", [{"image": "v.jpg", "answers": [{"answer": answer} for answer in answers]}])
    assert score_vqa(write("b.json", [{"image": "v.jpg", "answer": "no"}]), vizwiz)["accuracy"] == 0


def test_predictions_are_cleaned_on_request_and_the_result_says_so(write):
    annotations = write("annotations.json", [{"question_id": 1, "answers": ["yes"] * 10}])
    predictions = write("predictions.json", {"1": "Yes."})
    assert score_vqa(predictions, annotations)["accuracy"] == 0
    cleaned = score_vqa(predictions, annotations, clean=True)
    assert cleaned["accuracy"] == 100
    assert "lower-cased" in cleaned["predictions_cleaned"]


ANNOTATIONS = [{"question_id": 1, "answers": ["yes"] * 10}]


@pytest.mark.parametrize(
    ("annotations", "predictions", "message"),
    [
        ([{"question_id": 1}], {"1": "yes"}, r"annotations.json\[0\], question 1 has no answers.*test splits"),
        ([{"question_id": 1, "answers": []}], {"1": "yes"}, "question 1 has no answers"),
        ([{"question_id": 1, "answers": ["yes", 4]}], {"1": "yes"}, r"question 1, answers\[1\].*a number"),
        (ANNOTATIONS * 2, {"1": "yes"}, r"annotations.json\[1\] repeats question 1"),
        ({"questions": []}, {"1": "yes"}, "annotations.json has no list"),
        (ANNOTATIONS, {"2": "yes"}, "predictions.json, question 2 .*another split"),
        (ANNOTATIONS, {}, "no prediction for question 1"),
        (ANNOTATIONS, {"1": True}, "predictions.json, question 1.*true or false"),
        (ANNOTATIONS, [{"question_id": 1, "answer": "a"}] * 2, r"\[1\] is a second answer to question 1"),
        (ANNOTATIONS, [{"question_id": 1.5, "answer": "a"}], r"\[0\].*question_id"),
        (ANNOTATIONS, [{"question_id": 1, "text": "a"}], r"\[0\].*`answer`"),
    ],
)
def test_bad_answers_are_named(write, annotations, predictions, message):
    with pytest.raises(UserError, match=message):
        score_vqa(write("predictions.json", predictions), write("annotations.json", annotations))


# Images.


@pytest.fixture(scope="module")
def tensors():
    """Return small random weights in the layout of the Inception file."""
    return {
        name: np.ones(shape, np.float32)
        if name.endswith("running_var")
        else np.random.Generator(np.random.Philox(index)).standard_normal(shape, np.float32)
        / max(1, int(np.prod(shape[1:]))) ** 0.5
        for index, (name, shape) in enumerate(inception.expected_shapes().items())
    }


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Write two directories of three images, of several sizes and kinds."""
    parent = tmp_path_factory.mktemp("images")
    for name, key in (("a", 1), ("b", 2)):
        (parent / name / "subdirectory").mkdir(parents=True)
        generator = np.random.Generator(np.random.Philox(key))
        for index, (suffix, size) in enumerate((("png", (20, 30, 3)), ("jpg", (40, 16, 3)), ("PNG", (8, 8)))):
            pixels = generator.integers(0, 256, size, dtype=np.uint8)
            Image.fromarray(pixels).save(parent / name / f"{index}.{suffix}")
        Image.fromarray(pixels).save(parent / name / "subdirectory" / "left_out.png")
        (parent / name / "notes.txt").write_text("no image")
    return parent / "a", parent / "b"


def features_of(directory, tensors):
    pixels = [np.asarray(Image.open(directory / name).convert("RGB")) for name in ("0.png", "1.jpg", "2.PNG")]
    params = inception.import_inception(tensors, "weights.pth")
    return inception.inception_features(params, pixels).astype(np.float64)


def distance_of_three(one, other):
    """Return the Frechet distance from the features themselves: the last trace is that of a 3 x 3 matrix."""
    centred = [(features - features.mean(0)) / 2**0.5 for features in (one, other)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return ((one.mean(0) - other.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * cross


@pytest.mark.slow
def test_fid_of_two_directories_of_which_one_has_a_broken_image(directories, tensors, tmp_path):
    for path in directories[0].glob("[012].*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match=r"broken\.png"):
        score_fid(tmp_path, directories[1], tensors, "weights.pth", batch_size=2)
    done = []
    scores = score_fid(
        tmp_path,
        directories[1],
        tensors,
        "weights.pth",
        batch_size=2,
        max_bad=1,
        progress=lambda count, total: done.append((count, total)),
    )
    expected = distance_of_three(*(features_of(directory, tensors) for directory in directories))
    assert scores["fid"] == pytest.approx(expected, rel=1e-3)
    assert (scores["images"], scores["reference_images"]) == (3, 3)
    assert scores["weights"] == "weights.pth"
    assert len(scores["bad"]) == 1
    assert "broken.png" in scores["bad"][0]
    assert done[-1] == (3, 3)


@pytest.mark.slow
def test_fid_against_statistics(directories, tensors, tmp_path):
    features = [features_of(directory, tensors) for directory in directories]
    save_statistics(tmp_path / "reference.npz", feature_statistics(features[1]))
    scores = score_fid(directories[0], tmp_path / "reference.npz", tensors, "weights.pth", batch_size=2)
    assert scores["fid"] == pytest.approx(distance_of_three(*features), rel=1e-3)
    assert scores["reference_images"] is None


def test_directories_with_fewer_than_two_images_are_named(directories, tensors, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "only.png")
    for order in ((tmp_path, directories[0]), (directories[0], tmp_path)):
        with pytest.raises(UserError, match=r"holds 1 images.*at least two"):
            score_fid(*order, tensors, "weights.pth")
    with pytest.raises(UserError, match="not a directory"):
        score_fid(tmp_path / "missing", directories[0], tensors, "weights.pth")


def test_statistics_of_another_network_are_named(directories, tensors, tmp_path):
    save_statistics(tmp_path / "other.npz", feature_statistics(np.eye(5)))
    with pytest.raises(UserError, match=r"other\.npz.*5 values, expected 2048"):
        score_fid(directories[0], tmp_path / "other.npz", tensors, "weights.pth")
