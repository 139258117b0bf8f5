"""Stored records reach templates with the fields that the original's data would have had."""

import pickle

import numpy as np
import pytest

from seed_jax.data.shards.records import Record
from seed_jax.data.templates import TASKS, make_template
from seed_jax.data.templates.record_fields import fields_of
from seed_jax.data.templates.renderer import Renderer
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from tests.support import golden

A, B, C, D, E = (np.arange(start, start + 32, dtype=np.uint16) for start in range(5))


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


def record(*items, **meta):
    return Record("r1", "test", items, meta)


def plain(value):
    """Turn arrays into lists, for comparison."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


MARKED = "Question: q Question: r", "Answer: a Answer: b"
MARKED_FIELDS = {"question": MARKED[0], "answer": MARKED[1]}
PARAMS = {"sft.qa": {"reverse_ratio": -1.0}, "pretrain.caption_eval_prompt": {"num_context": 1}}

CASES = [
    ("pretrain.image_text_pair", record(A, "a", k=1), {"image_ids": A, "text": "a", "metadata": {"k": 1}}),
    ("pretrain.image_text_pair", record("a", A), {"image_ids": A, "text": "a", "metadata": {}}),
    ("seed1.caption", record(A, "a"), {"image_ids": A, "text": "a", "metadata": {}}),
    ("seed1.image", record(A, "a"), {"image_ids": A, "text": "a", "metadata": {}}),
    ("pretrain.text", record("a"), {"text": "a"}),
    ("pretrain.caption_text_only", record("a"), {"text": "a"}),
    (
        "pretrain.interleaved",
        record("a", A, B, "b"),
        {"image_ids": [None, A, B, None], "texts": ["a", None, None, "b"]},
    ),
    (
        "pretrain.retrieval_augmented",
        record(A, "a", B, "b"),
        {"image_ids": A, "text": "a", "context": [{"image_ids": B, "text": "b"}]},
    ),
    (
        "pretrain.caption_eval_prompt",
        record(A, "a", B),
        {"image_ids": B, "text": "", "context": [{"image_ids": A, "text": "a"}]},
    ),
    ("pretrain.video_caption", record(A, B, C, D, "a"), {"image_ids": np.concatenate([A, B, C, D]), "answer": "a"}),
    ("pretrain.edit", record(A, B, "a"), {"source_image_ids": A, "target_image_ids": B, "instruction": "a"}),
    (
        "sft.edit",
        record(A, B, instruction_gpt="a", response="b"),
        {"source_image_ids": A, "target_image_ids": B, "instruction_gpt": "a", "response": "b"},
    ),
    (
        "sft.edit_multi_turn",
        record(A, "a", B, "b", C, "c", D),
        {"image_ids": np.concatenate([A, B, C, D]), "instruction0": "a", "instruction1": "b", "instruction2": "c"},
    ),
    (
        "sft.story",
        record("a", A, "b", B, "c", C, "d", D, "e", E),
        {"image_ids": np.concatenate([A, B, C, D, E]), **{f"caption{n}": text for n, text in enumerate("abcde")}},
    ),
    ("sft.qa", record(A, "q", "a"), {"image_ids": A, "question": "q", "answer": "a"}),
    ("sft.qa", record(A, question="q", answer="a"), {"image_ids": A, "question": "q", "answer": "a"}),
    ("sft.qa", record(A, "a", question="q"), {"image_ids": A, "question": "q", "answer": "a"}),
    ("sft.qa", record(A, "a"), {"image_ids": A, "text": "a"}),
    ("sft.difference", record(A, B, "q", "a"), {"image_ids": np.concatenate([A, B]), "question": "q", "answer": "a"}),
    ("sft.conversation", record(A, "q", "a", "r", "b"), {"image_ids": A, "question": ["q", "r"], "answer": ["a", "b"]}),
    ("sft.conversation", record(A, question=MARKED[0], answer=MARKED[1]), {"image_ids": A, **MARKED_FIELDS}),
    ("sft.video_qa", record(A, B, "q", "a"), {"image_ids": np.concatenate([A, B]), "question": "q", "answer": "a"}),
    ("sft.video_conversation", record(A, "q", "a"), {"image_ids": A, "question": ["q"], "answer": ["a"]}),
    ("sft.visual_question", record(A, B, "q", "a", "r"), {"image_ids": [A, B], "data": ["q", "a", "r"]}),
    ("pretrain.visual_question", record(A, data=["q", "a"]), {"image_ids": [A], "data": ["q", "a"]}),
    (
        "sft.visual_question",
        record(A, instruction="i", inputs="", outputs="o"),
        {"image_ids": [A], "instruction": "i", "inputs": "", "outputs": "o"},
    ),
    ("sft.text_conversation", record("q", "a"), {"data": ["q", "a"]}),
    ("pretrain.text_conversation", record("q", "a"), {"data": ["q", "a"]}),
    ("sft.interleaved", record(A, "q", "a", B, response_at=2), {"instruction": [A, "q"], "response": ["a", B]}),
]


@pytest.mark.parametrize(("task", "stored", "expected"), CASES)
def test_fields(task, stored, expected, vocab):
    rng = np.random.default_rng(0)
    assert plain(fields_of(stored, task, rng)) == plain(expected)
    (sample,) = Renderer(make_template(task, PARAMS.get(task, {}), vocab))(stored, rng)
    assert sample.kept
    num_images = (sample.tokens == vocab.boi).sum() + (sample.tokens >= vocab.size).sum() // 32
    assert num_images == sum(isinstance(item, np.ndarray) for item in stored.items)


def test_turns_among_the_items_read_like_marked_ones(vocab):
    task = make_template("conversation", {}, vocab)
    rng = np.random.default_rng(0)
    (listed,) = Renderer(task)(record(A, "q", "a", "r", "b"), rng)
    (marked,) = Renderer(task)(record(A, **MARKED_FIELDS), rng)
    assert listed.tokens.tolist() == marked.tokens.tolist()


def test_every_task_has_an_adapter():
    assert {task for task, *_ in CASES} == set(TASKS)


def test_one_of_several_captions_is_drawn():
    rng = np.random.default_rng(0)
    stored = record(A, "a", "b", "c")
    assert {fields_of(stored, "pretrain.image_text_pair", rng)["text"] for _ in range(40)} == {"a", "b", "c"}


def test_a_renderer_is_a_function_of_record_and_generator(vocab):
    render = pickle.loads(pickle.dumps(Renderer(make_template("image_text_pair", {}, vocab))))
    stored = record(A, "a dog", "a cat")
    samples = [render(stored, np.random.default_rng(seed))[0].tokens.tolist() for seed in (1, 1, 2, 3, 4, 5)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) > 1


@pytest.mark.parametrize(
    ("task", "stored", "message"),
    [
        ("pretrain.image_text_pair", record(b"jpeg", "a"), "not tokenized"),
        ("pretrain.image_text_pair", record(A, B, "a"), "2 images, expected 1"),
        ("pretrain.image_text_pair", record(A), "no field 'text'"),
        ("pretrain.text", record(A, "a"), "1 images, expected 0"),
        ("pretrain.text", record("a", "b"), r"2 texts among its items, expected 1 \(text\)"),
        ("sft.story", record(A, "a"), r"1 texts among its items, expected 5 \(caption0, caption1"),
        ("sft.edit", record(A, "a"), "1 images, expected 2"),
        ("pretrain.retrieval_augmented", record("a", A), "do not alternate between images and their texts"),
        ("sft.interleaved", record("a", A), "meta.response_at of the record is None"),
    ],
)
def test_unsuitable_records_are_named(task, stored, message, vocab):
    with pytest.raises(UserError, match=message):
        Renderer(make_template(task, {}, vocab))(stored, np.random.default_rng(0))
