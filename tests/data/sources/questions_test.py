"""Questions about images, stories and differences."""

import base64
import json

import numpy as np

from seed_jax.data import templates
from seed_jax.data.sources import open_source
from seed_jax.data.templates.renderer import Renderer
from tests.data.sources.samples import all_samples, png, reasons, records, rendered, shown, vocabulary, write_images


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_vqav2_joins_questions_and_annotations(tmp_path):
    name = "COCO_train2014_{:012d}.jpg".format
    write_images(tmp_path / "p", {name(9): 10, name(25): 20})
    questions = [
        {"image_id": 9, "question": "What is it?", "question_id": 9000},
        {"image_id": 25, "question": "How many?", "question_id": 25000},
        {"image_id": 25, "question": "Which?", "question_id": 25001},
    ]
    answers = [{"answer": "2", "answer_id": 1}, {"answer": "two", "answer_id": 2}, {"answer": "two", "answer_id": 3}]
    annotations = [
        {"question_id": 25000, "image_id": 25, "answers": answers},  # as OK-VQA: no answer is singled out
        {"question_id": 9000, "image_id": 9, "multiple_choice_answer": "dog", "answers": answers},
    ]
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "train2014"}
    write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", {**head, "questions": questions})
    write(tmp_path / "v2_mscoco_train2014_annotations.json", {**head, "annotations": annotations})
    source = open_source("vqa", [tmp_path], images=tmp_path / "p")
    assert reasons(all_samples(source)) == [None, None, "no answer"]
    found = records(source, tmp_path / "out")
    assert [shown(each) for each in found] == [[10, "dog"], [20, "two"]]
    answers = ["2", "two", "two"]
    assert found[1].meta == {"question": "How many?", "image_id": 25, "question_id": 25000, "answers": answers}
    rendered(found[0], "sft.qa")


def test_the_answer_length_suffix_comes_from_the_mixture(tmp_path):
    write_images(tmp_path, {"a.png": 10})
    write(tmp_path / "q.json", [{"image": "a.png", "question": "What?", "answer": "dog"}])
    (record,) = records(open_source("vqa", [tmp_path / "q.json"]), tmp_path / "out")
    render = Renderer(templates.make_template("sft.qa", {}, vocabulary()), suffix=templates.SHORT_ANSWER)
    text = vocabulary().decode(render(record, np.random.default_rng(0))[0].tokens.tolist())
    assert f"What?{templates.SHORT_ANSWER}" in text


def test_captions_become_questions_by_the_mixture(tmp_path):
    write_images(tmp_path, {"a.png": 10})
    write(tmp_path / "c.json", [{"image": "a.png", "caption": ["dog", "cat", "bird"]}])
    (record,) = records(open_source("captions", [tmp_path / "c.json"]), tmp_path / "out")
    render = Renderer(templates.make_template("sft.qa", {}, vocabulary()), question="Describe it.")
    texts = {vocabulary().decode(render(record, np.random.default_rng(seed))[0].tokens.tolist()) for seed in range(30)}
    assert len(texts) == 3
    assert all("Describe it." in text for text in texts)


def test_other_question_files(tmp_path):
    write_images(tmp_path / "p", {f"{25:012d}.jpg": 10, "VizWiz_train_1.jpg": 20, "abc.jpg": 30, "123.jpg": 40})
    answers = [{"answer": "no", "answer_confidence": "yes"}] * 2
    files = {
        "aokvqa_v1p0_train.json": [
            {"image_id": 25, "question_id": "x", "question": "Q", "direct_answers": ["b", "a", "a"], "rationales": []}
        ],
        "vizwiz_train.json": [{"image": "VizWiz_train_1.jpg", "question": "Q", "answers": answers, "answerable": 0}],
        "TextVQA_0.5.1_train.json": {
            "dataset_type": "train",
            "data": [{"image_id": "abc", "question": "Q", "answers": ["a", "b"], "flickr_original_url": "http://x"}],
        },
        "ocr.json": {
            "123": {"imageURL": "http://x/y.jpg", "questions": ["Q", "R"], "answers": ["a", "b"], "split": 1},
            "456": {"imageURL": "http://x/z.jpg", "questions": ["Q"], "answers": ["a"], "split": 3},
            "789": {"imageURL": "http://x/z.jpg", "questions": ["Q"], "split": 1},
        },
    }
    found = {}
    for name, content in files.items():
        source = open_source("vqa", [write(tmp_path / name, content)], images=tmp_path / "p")
        found[name] = [[*shown(each), each.meta["question"]] for each in records(source, tmp_path / f"out-{name}")]
    one = [[[10, "a", "Q"]], [[20, "no", "Q"]], [[30, "a", "Q"]]]
    assert list(found.values()) == [*one, [[40, "a", "Q"], [40, "b", "R"]]]
    source = open_source("vqa", [tmp_path / "ocr.json"], images=tmp_path / "p", split="test")
    assert reasons(all_samples(source)) == ["missing image"]


def test_ocr_vqa_images_whose_extension_is_not_that_of_the_url(tmp_path):
    write_images(tmp_path / "p", {"222.jpg": 10, "333.gif": 20})
    book = {"questions": ["Who?", "What?"], "answers": ["A", "B"], "split": 1}
    urls = {"222": "http://x/y.gif", "333": "http://x/333.gif", "444": "http://x/z.gif"}
    write(tmp_path / "dataset.json", {key: {"imageURL": url, **book} for key, url in urls.items()})
    source = open_source("vqa", [tmp_path / "dataset.json"], images=tmp_path / "p")
    assert reasons(all_samples(source)) == [None] * 4 + ["missing image"] * 2
    assert [shown(record) for record in records(source, tmp_path / "out")] == [
        [10, "A"],
        [10, "B"],
        [20, "A"],
        [20, "B"],
    ]


def scene(story, order, photo, text):
    return [{"story_id": story, "worker_arranged_photo_order": order, "photo_flickr_id": photo, "original_text": text}]


def test_vist_stories(tmp_path):
    write_images(tmp_path / "p", {f"{number}.{'png' if number % 2 else 'jpg'}": 10 * number for number in range(5)})
    content = {
        "images": [{"id": "0"}],
        "annotations": [
            *(scene("s1", order, str(order), f"Scene {order}.") for order in (1, 0, 2, 3, 4)),
            *(scene("s2", order, str(order), f"Scene {order}.") for order in range(3)),
            *(scene("s3", order, f"{order}x", f"Scene {order}.") for order in range(5)),
            "broken",
        ],
    }
    write(tmp_path / "train.story-in-sequence.json", content)
    source = open_source("vist", [tmp_path], images=tmp_path / "p")
    short = "not a story of five images"
    assert reasons(all_samples(source)) == [None, short, "missing image", short]
    (found,) = records(source, tmp_path / "out")
    assert shown(found) == ["Scene 0.", 0, "Scene 1.", 10, "Scene 2.", 20, "Scene 3.", 30, "Scene 4.", 40]
    rendered(found, "sft.story")


def test_mimicit_differences_with_images_in_base64(tmp_path):
    images = {f"CGD_IMG_{number}": base64.b64encode(png(number)).decode() for number in (10, 20, 30)}
    write(tmp_path / "CGD.json", images | {"CGD_IMG_bad": "AAA"})
    questions = {
        "INS_1": {"instruction": "What differs?", "answer": "Colour.", "image_ids": ["CGD_IMG_10", "CGD_IMG_30"]},
        "INS_2": {"instruction": "What?", "answer": "One.", "image_ids": ["CGD_IMG_10"]},
        "INS_3": {"instruction": "What?", "answer": "None.", "image_ids": ["CGD_IMG_10", "gone"], "rel_ins_ids": []},
        "INS_4": {"instruction": "What?", "answer": "Bad.", "image_ids": ["CGD_IMG_10", "CGD_IMG_bad"]},
    }
    write(tmp_path / "CGD_instructions.json", {"meta": {"version": "0.0.1"}, "data": questions})
    source = open_source("mimicit", [tmp_path / "CGD_instructions.json"], images=tmp_path / "CGD.json")
    assert reasons(all_samples(source)) == [None, "not a question about two images", "missing image", None]
    (found,) = records(source, tmp_path / "out")
    assert shown(found) == [10, 30, "What differs?", "Colour."]
    assert found.meta == {"key": "INS_1", "image_ids": ["CGD_IMG_10", "CGD_IMG_30"]}
    rendered(found, "sft.difference")
