"""Lists of captions, texts and conversations."""

import base64
import gzip
import json
import zipfile

import numpy as np
import pytest

from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.errors import UserError
from tests.data.sources.samples import all_samples, png, reasons, records, rendered, shown, tar, write_images


def jsonl(path, entries):
    path.write_text("\n".join(json.dumps(each) for each in entries), encoding="utf-8")
    return path


def test_cc3m_tables_with_and_without_header(tmp_path):
    write_images(tmp_path / "p", {"a.png": 10, "b.png": 20})
    (tmp_path / "cc3m.tsv").write_text('a "red" dog\ta.png\n"quoted\tb.png\n')
    source = open_source("captions", [tmp_path / "cc3m.tsv"], images=tmp_path / "p")
    found = records(source, tmp_path / "one")
    assert [shown(each) for each in found] == [[10, 'a "red" dog'], [20, '"quoted']]
    assert [each.id for each in found] == ["cc3m.tsv:1", "cc3m.tsv:2"]
    rendered(found[0], "pretrain.image_text_pair")
    (tmp_path / "cc3m.csv").write_text('image,caption,clip\na.png,"a dog, asleep",0.3\nb.png,x,y,z\n')
    found = records(open_source("captions", [tmp_path / "cc3m.csv"], images=tmp_path / "p"), tmp_path / "two")
    assert [shown(each) for each in found] == [[10, "a dog, asleep"]]
    assert found[0].meta == {"image": "a.png", "clip": "0.3"}
    (tmp_path / "other.tsv").write_text("7\ta.png\ta dog\n")
    columns = ["number", "image", "caption"]
    source = open_source("captions", [tmp_path / "other.tsv"], images=tmp_path / "p", columns=columns)
    assert shown(records(source, tmp_path / "three")[0]) == [10, "a dog"]


def test_json_lists_of_captions(tmp_path):
    write_images(tmp_path, {"a.png": 10, "b.png": 20})
    entries = [{"image": "a.png", "caption": "one"}, {"image": "b.png", "caption": ["two", "zwei"]}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    found = records(open_source("captions", [tmp_path / "list.json"]), tmp_path / "out")
    assert [shown(each) for each in found] == [[10, "one"], [20, "two", "zwei"]]
    rendered(found[0], "sft.qa", reverse_ratio=-1.0)


def test_addresses_and_names_that_lead_out_are_counted(tmp_path):
    names = ["http://example.org/a.jpg", "../secret.png", "/etc/passwd", "a\0.png", "", "x" * 300, "gone.png"]
    jsonl(tmp_path / "c.jsonl", [{"image": name, "caption": "x"} for name in names])
    samples = all_samples(open_source("captions", [tmp_path / "c.jsonl"]))
    assert reasons(samples) == [
        "image is not downloaded",
        "unsafe image name",
        "unsafe image name",
        "no image name",
        "no image name",
        None,  # not there, which is found out when it is read
        None,
    ]
    with pytest.raises(UserError, match="holds no records"):
        records(open_source("captions", [tmp_path / "c.jsonl"]), tmp_path / "out")


def test_images_of_another_folder_are_not_taken(tmp_path):
    tar(tmp_path / "train2017.tar", {"1.png": png(10)})
    tar(tmp_path / "books.tar", {"ocr/images/2.png": png(20), "vqa/images/2.png": png(30), "./ocr/3.png": png(40)})
    names = [
        "train2017/1.png",
        "val2017/1.png",
        "1.png",
        "ocr/images/2.png",
        "images/2.png",
        "text/images/3.png",
        "2.png",
    ]
    jsonl(tmp_path / "c.jsonl", [{"image": name, "caption": "x"} for name in [*names, "ocr/3.png"]])
    source = open_source("captions", [tmp_path / "c.jsonl"], images=tmp_path)
    missing = "missing image"
    assert reasons(all_samples(source)) == [None, missing, None, None, missing, missing, missing, None]
    assert [shown(record)[0] for record in records(source, tmp_path / "out")] == [10, 10, 20, 40]


def test_blank_captions_among_several_are_left_out(tmp_path):
    write_images(tmp_path, {"a.png": 10})
    jsonl(
        tmp_path / "captions.jsonl",
        [{"image": "a.png", "caption": ["Red.", " ", ""]}, {"image": "a.png", "caption": [""]}],
    )
    (record,) = records(open_source("folder", [tmp_path]), tmp_path / "out")
    assert shown(record) == [10, "Red."]
    assert open_shards(tmp_path / "out").manifest.dropped == {"empty text": 1}
    notes = [{"image_id": 1, "caption": "Red."}, {"image_id": 1, "caption": ""}]
    coco = {"annotations": notes, "images": [{"id": 1, "file_name": "a.png"}]}
    (tmp_path / "captions_train.json").write_text(json.dumps(coco))
    source = open_source("coco", [tmp_path / "captions_train.json"], images=tmp_path)
    assert [shown(record) for record in records(source, tmp_path / "coco")] == [[10, "Red."]]


def test_tables_of_open_clip_and_images_in_base64(tmp_path):
    write_images(tmp_path, {"a.png": 10})
    (tmp_path / "train.csv").write_text("filepath\ttitle\na.png\tA dog, a cat.\n")
    (record,) = records(open_source("captions", [tmp_path / "train.csv"]), tmp_path / "out")
    assert shown(record) == [10, "A dog, a cat."]
    encoded = base64.b64encode(png(20)).decode()
    jsonl(
        tmp_path / "b.jsonl",
        [{"image": f"{start}{encoded}", "caption": "x"} for start in ("", "data:image/png;base64,")],
    )
    found = records(open_source("captions", [tmp_path / "b.jsonl"]), tmp_path / "base64")
    assert [shown(record) for record in found] == [[20, "x"], [20, "x"]]


@pytest.mark.parametrize("kind", ["captions", "llava", "text"])
def test_files_of_another_format_are_one_sentence(tmp_path, kind):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(UserError, match=r"parquet file: read it with --source parquet"):
        open_source(kind, [tmp_path / "a.parquet"])
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "a.json").write_text('[{"text": "x"}]', encoding=encoding)
        with pytest.raises(UserError, match="not UTF-8 text but perhaps UTF-16"):
            open_source(kind, [tmp_path / "a.json"])


def test_separators_of_unicode_do_not_end_a_line(tmp_path):
    text = "one\u2028two\u2029three\x85four"
    (tmp_path / "t.jsonl").write_text(
        "\ufeff" + json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (record,) = records(open_source("text", [tmp_path / "t.jsonl"]), tmp_path / "out")
    assert record.items == (text.replace("\x85", " "),)


@pytest.mark.parametrize("kind", ["folder", "captions", "webdataset"])
def test_images_with_captions_beside_them_are_one_sentence(tmp_path, kind):
    write_images(tmp_path / "00000", {"0.png": 10})
    for extension, content in ((".txt", "red"), (".json", '{"caption": "red"}')):
        (tmp_path / "00000" / f"0{extension}").write_text(content)
    with pytest.raises(UserError, match=r"captions beside them.*tar --sort=name.*--source webdataset"):
        open_source(kind, [tmp_path])


def test_images_in_tars(tmp_path):
    tar(tmp_path / "p.tar", {"deep/a.png": png(10), "deep/b.png": png(20), "other/b.png": png(30)})
    entries = [{"image": name, "caption": "x"} for name in ("deep/a.png", "a.png", "other/b.png", "b.png", "c.png")]
    jsonl(tmp_path / "c.jsonl", entries)
    source = open_source("captions", [tmp_path / "c.jsonl"], images=tmp_path / "p.tar")
    assert reasons(all_samples(source)) == [None, None, None, "missing image", "missing image"]  # b.png: two of them
    assert [shown(each)[0] for each in records(source, tmp_path / "out")] == [10, 10, 30]
    tar(tmp_path / "p.tar.gz", {"a.png": png(1)}, "w:gz")
    source = open_source("captions", [tmp_path / "c.jsonl"], images=tmp_path / "p.tar.gz")
    with pytest.raises(UserError, match=r"not a folder, a .tar"):
        all_samples(source)
    (tmp_path / "p.tar.gz").rename(tmp_path / "q.tar")
    source = open_source("captions", [tmp_path / "c.jsonl"], images=tmp_path / "q.tar")
    with pytest.raises(UserError, match="is compressed"):
        all_samples(source)


def test_coco_gives_a_image_all_its_captions(tmp_path):
    write_images(tmp_path / "train2017", {"000000000009.jpg": 10, "000000000025.jpg": 20, "000000000030.jpg": 30})
    content = {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "nested": [{"a": [1, 2]}]}],
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": 5, "width": 6, "flickr_url": "x"}
            for number in (9, 25, 30)
        ],
        "annotations": [
            {"image_id": 25, "id": 1, "caption": "Two cats. "},
            {"image_id": 9, "id": 2, "caption": "A dog."},
            {"image_id": 25, "id": 3, "caption": "Cats."},
        ],
    }
    (tmp_path / "captions_train2017.json").write_text(json.dumps(content))
    source = open_source("coco", [tmp_path / "captions_train2017.json"], images=tmp_path / "train2017")
    found = records(source, tmp_path / "out")
    assert [shown(each) for each in found] == [[10, "A dog."], [20, "Two cats.", "Cats."]]
    assert found[0].meta == {"id": 9, "height": 5, "width": 6}
    assert reasons(all_samples(source)) == [None, None, "no caption"]
    rendered(found[1], "pretrain.image_text_pair")


@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
def test_text_lines_plain_and_packed(tmp_path, packing):
    lines = "\n".join(json.dumps(each) for each in [{"id": "1", "title": "A", "text": "An article."}, {"text": "B"}, 7])
    path = tmp_path / f"wiki.jsonl{packing}"
    if packing == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif packing == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("wiki.jsonl", lines)
    else:
        path.write_text(lines)
    source = open_source("text", [path])
    assert reasons(all_samples(source)) == [None, None, "entry is not a JSON object"]
    found = records(source, tmp_path / "out")
    assert [each.items for each in found] == [("An article.",), ("B",)]
    assert found[0].meta == {"id": "1", "title": "A"}
    rendered(found[0], "pretrain.text")


def turn(role, value):
    return {"from": role, "value": value}


def test_llava_conversations(tmp_path):
    write_images(tmp_path / "p", {"a.png": 10, "7.jpg": 20})
    entries = [
        {"id": "1", "image": "a.png", "conversations": [turn("human", "<image>\nWhat?"), turn("gpt", "A dog.")]},
        {"id": "2", "conversations": [turn("system", "Be kind."), turn("human", "Hello"), turn("gpt", "Hi.")]},
        {"id": "3", "image": "a.png", "data": ["What?", "A dog.", "Why?", "It barks."]},
        {
            "image_id": 7,
            "conversations": [{"content": [{"from": "user", "value": "q"}, {"from": "gpt", "value": "a"}]}],
        },
        {"id": "4", "image": "a.png", "conversations": [turn("gpt", "A dog.")]},
        {"id": "5", "image": "a.png", "conversations": []},
        {"id": "6", "image": "a.png", "conversations": [turn("human", None)]},
        {"id": "7", "image": ["a.png", "7.jpg"], "conversations": [turn("human", "Which?"), turn("gpt", "Both.")]},
    ]
    (tmp_path / "llava.json").write_text(json.dumps(entries))
    source = open_source("llava", [tmp_path / "llava.json"], images=tmp_path / "p")
    wrong = ["no answer", "no conversation", "no conversation"]
    assert reasons(all_samples(source)) == [None, None, None, None, *wrong, None]
    found = records(source, tmp_path / "out")
    assert [shown(each) for each in found] == [
        [10, "What?", "A dog."],
        ["Hello", "Hi."],
        [10, "What?", "A dog.", "Why?", "It barks."],
        [20, "q", "a"],
        [10, 20, "Which?", "Both."],
    ]
    rendered(found[0], "sft.conversation")
    rendered(found[1], "sft.text_conversation")
    for each in found:
        rendered(each, "sft.visual_question")


@pytest.mark.parametrize(
    ("image", "turns", "expected"),
    [
        ("a.png", ["<image>\nWhat?"], "no answer"),
        (None, ["<image>\nWhat?", "Red."], "placeholder without an image"),
        (["a.png"], ["<image><image> Which?", "Both."], "placeholders and images differ in number"),
        ("a.png", ["What?", " "], "no answer"),
        ("a.png", ["", "Red."], "empty text"),
        (None, ["How do I use <image> in SVG?", "As <image>."], ["How do I use <image> in SVG?", "As <image>."]),
        ("a.png", ["<image>\nWhat does <image> mean?", "A tag."], [10, "What does <image> mean?", "A tag."]),
        (["a.png"] * 2, ["Is <image> like <image> here?", "Yes."], [10, 10, "Is  like  here?", "Yes."]),
        ("a.png", ["<image>", "A dog."], [10, "", "A dog."]),
        ("", ["Hello", "Hi."], ["Hello", "Hi."]),
        ("a.png", ["<image>\nWhat?", "A dog.", "Why?"], [10, "What?", "A dog.", "Why?"]),
    ],
)
def test_llava_turns_must_match_the_images(tmp_path, image, turns, expected):
    write_images(tmp_path, {"a.png": 10})
    roles = ("human", "gpt") * 2
    conversation = [turn(role, value) for role, value in zip(roles, turns, strict=False)]
    jsonl(tmp_path / "l.jsonl", [{"image": image, "conversations": conversation}])
    source = open_source("llava", [tmp_path / "l.jsonl"])
    if isinstance(expected, str):
        assert reasons(all_samples(source)) == [expected]
        return
    (record,) = records(source, tmp_path / "out")
    assert shown(record) == expected
    sample = rendered(record, "sft.visual_question" if image else "sft.text_conversation")
    assert sample.loss_mask[1:].sum() > 1


def test_llava_conversations_may_begin_with_the_model(tmp_path):
    system, greeting = turn("system", "Be kind."), turn("gpt", "Hi there.")
    entries = [
        {"conversations": [*first, turn("human", "Two and two?"), turn("gpt", "Four.")]}
        for first in ([greeting], [system, greeting], [greeting, greeting])
    ]
    jsonl(tmp_path / "l.jsonl", entries)
    source = open_source("llava", [tmp_path / "l.jsonl"])
    assert reasons(all_samples(source)) == [None, None, "turns do not alternate"]
    assert {tuple(shown(record)) for record in records(source, tmp_path / "out")} == {("Two and two?", "Four.")}


def test_a_list_that_breaks_off_is_counted(tmp_path):
    write_images(tmp_path, {"a.png": 10})
    whole = json.dumps([{"image": "a.png", "caption": f"caption {number}"} for number in range(9)])
    for cut in range(0, len(whole) - 1, 7):
        (tmp_path / "c.json").write_text(whole[:cut])
        samples = all_samples(open_source("captions", [tmp_path / "c.json"]))
        assert cut == 0 or samples[-1].reason in ("damaged file", "line is not JSON", "entry is not a JSON object")
        assert sum(reason is None for reason in reasons(samples)) == max(0, whole[:cut].count("}"))
    packed = gzip.compress(b'{"text": "x"}\n' * 2000)
    (tmp_path / "t.jsonl.gz").write_bytes(packed[:-20])
    source = open_source("text", [tmp_path / "t.jsonl.gz"])
    assert [*source.read(source.files[0], 0, 10**6)][-1].reason == "damaged file"


def test_long_lists_are_read_in_windows(tmp_path, monkeypatch):
    from seed_jax.data.sources import json_stream

    monkeypatch.setattr(json_stream, "CHUNK", 5)
    rng = np.random.default_rng(0)
    values = [{"text": 'ä犬\\" ' * int(rng.integers(1, 9)), "n": int(rng.integers(10**9)), "l": [None, True, -1.5e3]}]
    values += [{"text": str(number), "o": {"a": {"b": [[], {}]}}} for number in range(30)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"skipped": [values, {"x": values}], "n": 12345, "here": values}, indent=1))
    assert list(json_stream.elements(path, "here")) == values
    assert list(json_stream.names(path)) == ["skipped", "n", "here"]
    assert json_stream.value(path, "n") == 12345
    path.write_text(json.dumps({"m": dict(enumerate(values))}, ensure_ascii=False))
    assert list(json_stream.members(path, "m")) == [(str(number), value) for number, value in enumerate(values)]


def test_options_that_do_not_fit(tmp_path):
    jsonl(tmp_path / "c.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match="'folder' has no --images: it takes no options"):
        open_source("folder", [tmp_path], images=tmp_path)
    with pytest.raises(UserError, match="'text' has no --frames, --split: it takes no options"):
        open_source("text", [tmp_path], frames=4, split="train")
    with pytest.raises(UserError, match="--images gone does not exist"):
        open_source("coco", [tmp_path / "c.jsonl"], images="gone")
    with pytest.raises(UserError, match=r"contains no VIST stories: expected files named \*story-in-sequence"):
        open_source("vist", [tmp_path])
