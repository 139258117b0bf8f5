"""Templates give the ids, labels and decisions that the original's readers gave, case by case."""

import itertools
import json
import pickle

import numpy as np
import pytest

from seed_jax.data.templates import TASKS, Phrases, make_template
from seed_jax.data.templates.phrases import DEFAULT
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from tests.support import golden

CODES = list(range(32))
UNDERSTANDING = {"mode": "understanding"}
# Tasks whose recorded cases need the original's sentences, which are quoted data and not part of the project.
WITH_PHRASES = {"pretrain.edit", "sft.difference", "sft.edit", "sft.edit_multi_turn", "sft.qa", "sft.story"}

# Parameters of the original's readers that have no effect there and do not exist here.
WITHOUT_EFFECT = {
    "sft.difference": {"reverse_ratio"},
    "sft.text_conversation": {"roles"},
    "sft.visual_question": {"roles", "system_message"},
}


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(golden.path("text_tokenizer/tokenizer"))


@pytest.fixture(scope="module")
def official():
    return Phrases.from_dict(golden.load_json("templates/official_templates.json"))


def set_up(task, case, vocab, phrases, **options):
    params = {key: value for key, value in case["params"].items() if key not in WITHOUT_EFFECT.get(task, ())}
    strict = "nonstandard" not in case.get("tags", ())
    return make_template(task, {"strict_images": strict, **params, **options}, vocab, phrases)


def fields_of(case):
    return {"text": case["record"]} if isinstance(case["record"], str) else case["record"]


def check(task, case, vocab, phrases):
    """Compare one recorded case: ids, attention mask and labels after padding, and keep or drop."""
    sample = set_up(task, case, vocab, phrases).render(fields_of(case), case["choice"])
    if case["kept"] is not None:
        assert (sample.kept, not sample.reason) == (case["kept"], case["kept"])
    if case["output"] is None:
        assert len(sample) == 0
        return
    expected, padding = case["output"], len(case["output"]["input_ids"]) - len(sample)
    assert sample.tokens.tolist() + [vocab.pad] * padding == expected["input_ids"]
    if expected["attention_mask"] is not None:
        assert [1] * len(sample) + [0] * padding == expected["attention_mask"]
    if expected["labels"] is None:
        assert not sample.loss_mask.any()
    else:
        assert sample.labels.tolist() + [-100] * padding == expected["labels"]


# SEED-OPT's readers were never released.
RECORDED = sorted(task for task in TASKS if not task.startswith("seed1."))


@pytest.fixture
def phrases(task, request):
    return request.getfixturevalue("official") if task in WITH_PHRASES else Phrases.load()


@pytest.mark.parametrize("task", RECORDED)
def test_every_recorded_case(task, vocab, phrases):
    content = golden.load_json(f"templates/{task}.json")
    assert len(content["cases"]) == content["num_cases"]
    failed = {}
    for case in content["cases"]:
        try:
            check(task, case, vocab, phrases)
        except Exception as error:  # the name of the case is what is wanted
            failed[case["name"]] = repr(error)[:300]
    assert not failed, json.dumps(failed, indent=1)


class Scripted(np.random.Generator):
    """Gives out recorded draws, each kind in its order."""

    def __init__(self, draws):
        super().__init__(np.random.PCG64(0))
        self._draws = draws

    def _next(self, *calls):
        found = next(draw for draw in self._draws if draw["call"] in calls)
        self._draws = [draw for draw in self._draws if draw is not found]
        return found

    def random(self):
        return self._next("uniform")["value"]

    def integers(self, *args, **kwargs):
        draw = self._next("randint", "choice")
        return draw.get("value", draw.get("index"))

    def permutation(self, size):
        draw = self._next("shuffle")
        assert draw["size"] == size
        return np.array(draw["order"])


@pytest.mark.parametrize("task", RECORDED)
def test_recorded_random_draws_give_the_recorded_choice(task, vocab, phrases):
    for case in golden.load_json(f"templates/{task}.json")["cases"]:
        # Differences: only the layout is drawn here; the original first draws a task that it does not have.
        draws = case["draws"][-1:] if task == "sft.difference" else case["draws"]
        choice = set_up(task, case, vocab, phrases).choose(fields_of(case), Scripted(draws))
        expected = {key: value for key, value in case["choice"].items() if key not in ("request", "reply")}
        assert {**dict.fromkeys(expected), **choice} == expected, case["name"]


def test_choices_follow_the_ratio_and_reach_every_phrase(vocab):
    fields = {"image_ids": CODES, "question": "q", "answer": "a", "text": "t"}

    def drawn(task, ratio, key, count=300):
        made = make_template(task, {"reverse_ratio": ratio}, vocab)
        rng = np.random.default_rng(0)
        return [made.choose(fields, rng).get(key) for _ in range(count)]

    assert set(drawn("image_text_pair", 0.0, "order")) == {"text_first"}
    assert set(drawn("image_text_pair", 1.0, "order")) == {"image_first"}
    assert 0.2 < np.mean([order == "image_first" for order in drawn("image_text_pair", 0.3, "order")]) < 0.4
    assert set(drawn("qa", 0.0, "mode")) == {"understanding"}
    assert 0.2 < np.mean([mode == "understanding" for mode in drawn("qa", 0.3, "mode")]) < 0.4
    assert set(drawn("qa", -1.0, "template_index")) == set(range(20))
    assert set(drawn("story", 0.5, "template_index")) == set(range(10))
    assert drawn("qa", 0.5, "mode") == drawn("qa", 0.5, "mode")


def words(vocab, sample, trained=True):
    """Spell out the trained (or untrained) tokens of a sample."""
    return vocab.decode(sample.tokens[sample.loss_mask == trained])


def test_llama2_style(vocab):
    recorded = {case["text"]: case["ids"] for case in golden.load_json("text_tokenizer/fixtures.json")["cases"]}
    prompt, ids = next((text, ids) for text, ids in recorded.items() if text.startswith("<s>[INST] <img>"))
    codes = [token - vocab.first_code for token in ids if vocab.code_of(token) is not None]
    question = prompt[prompt.index("</img>") + 6 : prompt.index(" [/INST]")]
    task = make_template("sft.visual_question", {"style": "llama2"}, vocab)
    sample = task.render({"image_ids": [codes], "data": [question, "two", "Why?", "yes"]}, {})
    later = vocab.encode("\n[INST] Why? [/INST]\n")
    expected = [ids, vocab.encode("two."), later, vocab.encode("yes."), [vocab.eos]]
    assert sample.tokens.tolist() == list(itertools.chain(*expected))
    assert vocab.pieces(later[:3]) == ["▁", "<0x0A>", "["]
    trained = [[flag] * len(part) for part, flag in zip(expected, (False, True, False, True, True), strict=True)]
    assert sample.loss_mask.tolist() == list(itertools.chain(*trained))


def test_vicuna_training_begins_with_the_prompt_of_inference(vocab):
    image = "<img>" + "".join(f"<img_{code:05d}>" for code in CODES) + "</img>"
    prompt = vocab.encode(f"USER: {image}What?\nASSISTANT:", bos=True)
    sample = make_template("qa", {}, vocab).render(
        {"image_ids": CODES, "question": "What? ", "answer": "a dog"}, UNDERSTANDING
    )
    assert sample.tokens.tolist() == [*prompt, *vocab.encode("a dog."), vocab.eos]
    assert sample.loss_mask.tolist() == [False] * len(prompt) + [True] * (len(sample) - len(prompt))


def test_eos_between_turns(vocab):
    fields = {"data": ["a", "b", "c", "d", "e"]}
    plain = make_template("sft.text_conversation", {}, vocab).render(fields, {})
    ended = make_template("sft.text_conversation", {"eos_between_turns": True}, vocab).render(fields, {})
    assert words(vocab, plain) == " b d</s>"
    assert np.flatnonzero(plain.tokens == vocab.eos).tolist() == [len(plain) - 1]
    ends = np.flatnonzero(ended.tokens == vocab.eos)
    assert len(ends) == 3
    assert ended.loss_mask[ends].all()
    assert np.delete(ended.tokens, ends[:-1]).tolist() == plain.tokens.tolist()
    assert [vocab.decode([ended.tokens[end - 1]]) for end in ends[:-1]] == ["b", "d"]
    answered = make_template("sft.text_conversation", {"eos_between_turns": True}, vocab).render(
        {"data": ["a", "b"]}, {}
    )
    assert answered.tokens.tolist().count(vocab.eos) == 1


def test_whole_images(vocab):
    fields = {"image_ids": [CODES, None, CODES], "texts": [None, "a dog", None]}
    whole = len(make_template("pretrain.interleaved", {}, vocab).render(fields, {"swap": False}))
    for length in {1, 2, 3, 33, 34, 35, 36, 40, whole - 34, whole - 2, whole - 1, whole, whole + 1}:
        faithful = make_template("pretrain.interleaved", {"max_length": length}, vocab).render(fields, {"swap": False})
        sample = make_template("pretrain.interleaved", {"max_length": length, "whole_images": True}, vocab).render(
            fields, {"swap": False}
        )
        kinds = [sum(sample.tokens == token) for token in (vocab.boi, vocab.eoi)]
        codes = sum(vocab.code_of(token) is not None for token in sample.tokens)
        assert kinds == [codes // 32] * 2
        assert codes % 32 == 0
        assert len(faithful) == min(length, whole)
        assert sample.tokens.tolist() == faithful.tokens[: len(sample)].tolist()
        # No more is cut than the image that does not fit.
        assert len(sample) == len(faithful) or faithful.tokens[len(sample)] == vocab.boi


def test_plain_text(vocab):
    fields = {"text": "the end</s> of <img> a </img> story <unk>"}
    faithful = make_template("text", {}, vocab).render(fields, {})
    plain = make_template("text", {"plain_text": True}, vocab).render(fields, {})
    assert faithful.tokens.tolist().count(vocab.eos) == 2
    assert plain.tokens.tolist().count(vocab.eos) == 1
    assert vocab.decode(plain.tokens[1:-1]) == fields["text"]
    assert plain.loss_mask.all()
    pair = make_template("image_text_pair", {"plain_text": True}, vocab).render(
        {"image_ids": CODES, "text": "</img> a"}, {"order": "image_first"}
    )
    assert pair.tokens.tolist().count(vocab.eoi) == 1


def test_samples_without_a_trained_token_can_be_dropped(vocab):
    fields = {"image_ids": CODES, "question": "What?", "answer": "a dog"}
    assert make_template("qa", {"max_length": 36}, vocab).render(fields, UNDERSTANDING).kept
    dropped = make_template("qa", {"max_length": 36, "drop_untrained": True}, vocab).render(fields, UNDERSTANDING)
    assert (dropped.kept, dropped.reason) == (False, "no trained token is left")
    assert make_template("qa", {"max_length": 90, "drop_untrained": True}, vocab).render(fields, UNDERSTANDING).kept
    # Nothing predicts BOS, so its label does not count.
    assert not make_template("text", {"max_length": 1, "drop_untrained": True}, vocab).render({"text": "a"}, {}).kept


@pytest.mark.parametrize(
    ("text", "renamed"),
    [
        ("objects in the image are new", "objects in the image are new"),
        ("Which image best fits, image a or image B?", "Which image best fits, {1} or {2}?"),
        ("the image above and image_a", "the image above and image_a"),
        ("The image A has more than the image b.", "{T1} has more than {2}."),
        ("Image b's sky", "{T2}'s sky"),
        ("in the image a dog runs", "in the image a dog runs"),
    ],
)
def test_whole_word_renaming(vocab, text, renamed):
    one, two = "the first picture", "the second picture"
    names = {"1": one, "2": two, "T1": one.capitalize(), "T2": two.capitalize()}
    for key, value in names.items():
        renamed = renamed.replace(f"{{{key}}}", value)
    task = make_template("difference", {"whole_words": True}, vocab)
    sample = task.render({"image_ids": CODES * 2, "question": text, "answer": text}, {"layout": "sentence_then_image"})
    answer = renamed if renamed.endswith(".") else renamed + "."
    assert words(vocab, sample) == f" {answer}</s>"
    assert f"</img> {renamed}\nASSISTANT:" in words(vocab, sample, trained=False)


def test_replacing_characters_is_the_default_as_in_the_original(vocab):
    sample = make_template("difference", {}, vocab).render(
        {"image_ids": CODES * 2, "question": "", "answer": "the image above"}, {"layout": "sentence_then_image"}
    )
    assert words(vocab, sample) == " the the first picturebove.</s>"


@pytest.mark.parametrize(
    ("task", "fields", "choice", "message"),
    [
        ("image_text_pair", {"image_ids": CODES[:31], "text": "a"}, {"order": "image_first"}, r"codes of shape \[31\]"),
        ("image_text_pair", {"image_ids": [128] * 32, "text": "a"}, {"order": "image_first"}, "from 128 to 128"),
        ("image_text_pair", {"image_ids": CODES}, {"order": "image_first"}, "no field 'text'"),
        ("image_text_pair", {"text": "a"}, {"order": "image_first"}, "no codes in field 'image_ids'"),
        ("text", {"text": None}, {}, "NoneType in field 'text'"),
        ("pretrain.interleaved", {"image_ids": [CODES], "texts": []}, {"swap": False}, "1 image_ids and 0 texts"),
        ("story", {"image_ids": CODES * 4}, {"variant": "multi_turn"}, "expected 5 images of 32 codes"),
        ("difference", {"image_ids": CODES * 3}, {"layout": ""}, "expected 2 images of 32 codes"),
        ("video_qa", {"image_ids": CODES[:3], "question": "q", "answer": "a"}, {}, "expected a multiple of 32 codes"),
        ("video_qa", {"image_ids": [], "question": "q", "answer": "a"}, {}, "expected a multiple of 32 codes"),
        ("video_caption", {"image_ids": CODES * 3, "answer": "a"}, {}, "3 frames, expected at least num_frames 4"),
        ("sft.interleaved", {"instruction": "<img><img_00001></img>", "response": ""}, {}, r"codes of shape \[1\]"),
        ("sft.text_conversation", {"data": "hello"}, {}, "is not a list of texts"),
        ("sft.edit", {"source_image_ids": CODES, "instruction_gpt": "x"}, {"reply_index": None}, "'response'"),
    ],
)
def test_unsuitable_records_are_named(vocab, task, fields, choice, message):
    with pytest.raises(UserError, match=message):
        make_template(task, {}, vocab).render(fields, choice)


def test_video_with_unequal_turns_is_dropped(vocab):
    fields = {"image_ids": CODES, "question": "Question: a Question: b", "answer": "Answer: c"}
    sample = make_template("video_conversation", {}, vocab).render(fields, {})
    assert (len(sample), sample.kept, sample.reason) == (0, False, "the numbers of questions and answers differ")


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        ("image_pair", {}, "Unknown task 'image_pair': expected one of pretrain.caption_eval_prompt"),
        ("edit", {}, "ambiguous: write pretrain.edit or sft.edit"),
        ("qa", {"reverse": 0.5}, "sft.qa has no parameter 'reverse': expected one of .*max_length.*reverse_ratio"),
        ("text", {"max_length": "200"}, "max_length of task pretrain.text is '200', expected"),
        ("qa", {"reverse_ratio": True}, "reverse_ratio of task sft.qa is True, expected float"),
        ("qa", {"style": "chatml"}, "style is 'chatml', expected 'vicuna'"),
        ("sft.visual_question", {"style": "llama2", "sep": " "}, "fixed markers"),
        ("image_text_pair", {"caption_prompt": "{name}"}, "Task pretrain.image_text_pair: caption_prompt"),
        ("pretrain.text_conversation", {"roles": ["USER"]}, "expected two names"),
        ("retrieval_augmented", {"random_num_images": True}, "1 <= min_images <= max_images"),
    ],
)
def test_wrong_configs_are_named(vocab, task, params, message):
    with pytest.raises(UserError, match=message):
        make_template(task, params, vocab)


def test_configs_may_use_short_names(vocab):
    task = make_template("image_text_pair", {"reverse_ratio": 1, "caption_prompt": ["{} here", "There: {}"]}, vocab)
    assert task.name == "pretrain.image_text_pair"
    fields, rng = {"image_ids": CODES, "text": "a dog"}, np.random.default_rng(0)
    copy = pickle.loads(pickle.dumps(task))
    texts = {words(vocab, copy(fields, rng)).rpartition("</img>")[2] for _ in range(20)}
    assert texts == {"  a dog here</s>", "  There: a dog</s>"}


def test_custom_phrases_have_the_structure_of_the_originals():
    own = Phrases.load()
    assert len(own.requests) == len(own.replies) == 20
    assert own.closing_marks == (".",) * 14 + ("?",) * 6
    assert (len(own.edit_replies), len(own.story_requests), len(own.story_replies)) == (8, 10, 10)
    for sentence in (*own.replies, *own.edit_replies, *own.sentences, *own.story_replies, own.next_reply):
        assert sentence == sentence.strip()
        assert sentence.endswith(".")
    assert own.next_request.startswith(" ")


def test_phrases_files_are_checked(tmp_path, vocab):
    content = json.loads(DEFAULT.read_text())
    path = tmp_path / "phrases.json"
    for section, key, value, message in (
        ("image_generation", "replies", ["one."], "replies of .* has 1 entries, expected 20"),
        ("image_generation", "requests", "please", "requests of .* must be a list of str"),
        ("image_editing", "drawn_indices", [8], "drawn_indices of .* from 0 to 7"),
        ("image_difference", "replacements", {"image a": "x"}, "must name image a"),
        ("story", "multi_turn_reply", None, "multi_turn_reply of .* must be a str"),
    ):
        path.write_text(json.dumps({**content, section: {**content[section], key: value}}))
        with pytest.raises(UserError, match=message):
            make_template("qa", {}, vocab, path)
    path.write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        make_template("qa", {}, vocab, path)
    path.write_text(json.dumps({**content, "story": {**content["story"], "multi_turn_reply": "Voila."}}))
    story = {"image_ids": CODES * 5, **{f"caption{number}": "a" for number in range(5)}}
    assert "Voila." in words(vocab, make_template("story", {}, vocab, path).render(story, {"variant": "multi_turn"}))
