"""The original's own shards, and pickles that are not what they seem."""

import collections
import contextlib
import os
import pickle
import pickletools
import random

import numpy as np
import pytest

from seed_jax.data.build.build import build
from seed_jax.data.build.options import BuildOptions, SkipLimit
from seed_jax.data.shards.shards import open_shards
from seed_jax.data.sources import open_source
from seed_jax.data.sources.plain_pickle import PickleError, load
from tests.data.sources.samples import Reds, all_samples, reasons, rendered, tar


def codes(*starts):
    return [(start + place) % 128 for start in starts for place in range(32)]


SAMPLES = {
    "pretrain.image_text_pair": {"image_ids": codes(1), "text": "a dog", "metadata": {"similarity": 0.3, "url": "x"}},
    "pretrain.interleaved": {"image_ids": [None, codes(1)], "texts": ["a", None], "metadata": {"url": "x"}},
    "pretrain.video_caption": {"image_ids": np.array(codes(1, 2, 3, 4)), "answer": "a film", "metadata": {}},
    "pretrain.text": {"text": "an article"},
    "sft.qa": {"image_ids": np.array(codes(1), np.int32), "question": "q", "answer": "a"},
    "sft.edit": {"source_image_ids": codes(1), "target_image_ids": codes(2), "instruction": "a hat", "response": "Yes."}
    | {"instruction_gpt": "Please."},
    "sft.story": {"image_ids": codes(1, 2, 3, 4, 5), **{f"caption{n}": f"scene {n}" for n in range(5)}},
    "sft.difference": {"image_ids": codes(1, 2), "question": "q", "answer": "a"},
    "sft.edit_multi_turn": {"image_ids": codes(1, 2, 3, 4), **{f"instruction{n}": f"edit {n}" for n in range(3)}},
    "sft.visual_question": {"image_ids": [codes(1)], "data": ["q", "a", "r", "b"]},
    "sft.video_qa": {"image_ids": codes(1, 2), "question": "q", "answer": "a"},
    "sft.conversation": {"image_ids": codes(1), "question": "Question: q", "answer": "Answer: a"},
    "pretrain.visual_question": {"image_ids": [codes(1)], "instruction": "i", "inputs": "", "outputs": "o"},
}


def shards(path, samples, protocol=None):
    return tar(path, {f"{number:032x}.pkl": pickle.dumps(each, protocol) for number, each in enumerate(samples)})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_kind_of_sample_is_read(tmp_path, protocol):
    source = open_source("pickles", [shards(tmp_path / "0000000.tar", SAMPLES.values(), protocol)])
    assert reasons(all_samples(source)) == [None] * len(SAMPLES)
    build(source, tmp_path / "out", encoder=Reds(), options=BuildOptions(progress=False))
    found = open_shards(tmp_path / "out", tokenizer="c" * 64)
    for record, (task, sample) in zip(found, SAMPLES.items(), strict=True):
        images = [item.tolist() for item in record.items if isinstance(item, np.ndarray)]
        named = [sample[key] for key in ("source_image_ids", "target_image_ids", "image_ids") if key in sample]
        flat = [code for value in named for code in np.ravel([each for each in value if each is not None]).tolist()]
        assert [code for image in images for code in image] == flat
        if task != "sft.conversation":  # in which the original marks the turns up inside the texts
            rendered(record, task)
    assert found[0].items[1] == "a dog"
    assert found[0].meta == {"similarity": 0.3, "url": "x"}
    assert found[5].meta == {"response": "Yes.", "instruction_gpt": "Please."}


def test_arrays_come_back_whatever_their_kind():
    for kind in ("i1", "u2", "<i4", ">i8", "f4", ">f8", "?"):
        for shape in ((), (3,), (2, 3), (0,)):
            array = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).astype(kind)
            for protocol in range(6):
                for each in (array, np.asfortranarray(array)):
                    found = load(pickle.dumps({"a": each, "s": array.dtype.type(1)}, protocol))
                    np.testing.assert_array_equal(found["a"], each)
                    assert found["s"] == 1


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/seed_jax_was_here",)


@pytest.mark.parametrize(
    "value",
    [
        Evil(),
        {"image_ids": Evil()},
        np.array([Evil()], dtype=object),
        np.array(["text"]),
        np.array([1], dtype="M8[s]"),
        collections.OrderedDict(a=1),
        {1, 2},
        b"bytes",
        1 << 80,
        print,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_data_is_refused(value):
    with pytest.raises(PickleError):
        load(pickle.dumps(value))
    assert not os.path.exists("/tmp/seed_jax_was_here")  # noqa: PTH110


def test_pickles_that_ask_for_memory_are_refused():
    # A memo entry with the number 2**31, a bytearray of 2**40 bytes, lists within lists that double thirty times.
    assert load(b"\x80\x04Nr\xff\xff\xff\x7f.") is None
    with pytest.raises(PickleError, match="damaged"):
        load(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".")
    with pytest.raises(PickleError, match="damaged"):
        load(b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".")
    value = []
    for _ in range(30):
        value = [value, value]
    with pytest.raises(PickleError, match="values"):
        load(pickle.dumps(value))
    value = []
    value.append(value)
    with pytest.raises(PickleError):
        load(pickle.dumps(value))


def test_fuzzed_pickles_are_read_or_refused():
    rng = random.Random(0)
    seeds = [pickle.dumps(sample, protocol) for sample in SAMPLES.values() for protocol in (0, 2, 4)]
    codes_of_instructions = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    for _ in range(3000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(data))
            data[place : place + 1] = rng.choice([bytes([rng.randrange(256)]), b"", rng.choice(codes_of_instructions)])
        with contextlib.suppress(PickleError):
            load(bytes(data))


def test_unusable_samples_are_counted(tmp_path):
    samples = [
        {"image_ids": codes(1)[:20], "text": "x"},
        {"image_ids": [codes(1), codes(2)[:5]], "data": ["x"]},
        {"image_ids": [-1] * 32, "text": "x"},
        {"image_ids": [1.5] * 32, "text": "x"},
        {"image_ids": codes(1), "text": 7},
        {"image_ids": [None], "texts": [None]},
        ["no sample"],
        Evil(),
    ]
    path = shards(tmp_path / "0.tar", samples)
    source = open_source("pickles", [path])
    assert reasons(all_samples(source)) == [
        "images without 32 codes each",
        "images without 32 codes each",
        "codes out of range",
        "images without 32 codes each",
        "a field of the pickle is not text",
        "not a document",
        "pickle is not a sample",
        "pickle is not plain data",
    ]
    path.write_bytes(path.read_bytes()[:530])
    assert reasons(all_samples(open_source("pickles", [path]))) == ["pickle is truncated", "damaged archive"]
    options = BuildOptions(progress=False, max_skipped=SkipLimit(fraction=1.0))
    manifest = build(open_source("pickles", [shards(path, samples)]), tmp_path / "out", options=options)
    assert manifest.records == 0
