"""Pairs of images with an instruction."""

import json

from seed_jax.data.sources import open_source
from tests.data.sources.samples import all_samples, reasons, records, rendered, shown, write_images


def test_instruct_pix2pix(tmp_path):
    seeds = [["0000", ["111", "222"]], ["0001", ["333"]], ["0002", ["444"]], "broken", ["..", ["1"]]]
    (tmp_path / "seeds.json").write_text(json.dumps(seeds))
    write_images(tmp_path, {"0000/111_0.jpg": 10, "0000/111_1.jpg": 20, "0000/222_0.jpg": 30, "0000/222_1.jpg": 40})
    write_images(tmp_path, {"0001/333_0.jpg": 50, "0001/333_1.jpg": 60})
    for folder, prompt in (("0000", {"input": "a dog", "edit": "make it a cat"}), ("0001", {"edit": 7})):
        (tmp_path / folder / "prompt.json").write_text(json.dumps(prompt))
    source = open_source("edits", [tmp_path])
    expected = [None, None, "no instruction", "no instruction", "no image name", "unsafe image name"]
    assert reasons(all_samples(source)) == expected
    found = records(source, tmp_path / "out")
    assert [shown(each) for each in found] == [[10, 20, "make it a cat"], [30, 40, "make it a cat"]]
    assert found[1].meta == {"folder": "0000", "seed": "222"}
    rendered(found[0], "sft.edit")
    rendered(found[0], "pretrain.edit")


def test_magicbrush_sessions_and_turns(tmp_path):
    def turn(source, target, instruction):
        return {"input": source, "mask": "m.png", "output": target, "instruction": instruction}

    one, two = turn("7-input.png", "7-output1.png", "add a hat"), turn("7-output1.png", "7-output2.png", "now red")
    names = {"images/7/7-input.png": 10, "images/7/7-output1.png": 20, "images/7/7-output2.png": 30}
    write_images(tmp_path, names)
    (tmp_path / "edit_sessions.json").write_text(json.dumps({"7": [one, two], "8": "broken"}))
    source = open_source("edits", [tmp_path / "edit_sessions.json"])
    assert reasons(all_samples(source)) == [None, None, "entry is not a JSON object"]
    found = records(source, tmp_path / "one")
    assert [shown(each) for each in found] == [[10, 20, "add a hat"], [20, 30, "now red"]]
    (tmp_path / "edit_turns.json").write_text(json.dumps([two]))
    source = open_source("edits", [tmp_path / "edit_turns.json"], images=tmp_path / "images")
    assert shown(records(source, tmp_path / "two")[0]) == [20, 30, "now red"]


def test_lists_with_rewritten_instructions(tmp_path):
    write_images(tmp_path, {"a.png": 10, "b.png": 20})
    entry = {"source": "a.png", "target": "b.png", "instruction": "hat"}
    lines = [entry, {**entry, "instruction_gpt": "Please add a hat.", "response": "Here it is."}, {"source": "a.png"}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source("edits", [tmp_path / "edits.jsonl"])
    assert reasons(all_samples(source)) == [None, None, "no image name"]
    plain, polite = records(source, tmp_path / "out")
    assert shown(plain) == shown(polite) == [10, 20, "hat"]
    assert polite.meta["response"] == "Here it is."
    rendered(plain, "sft.edit")
    assert len(rendered(polite, "sft.edit")) != len(rendered(plain, "sft.edit"))
