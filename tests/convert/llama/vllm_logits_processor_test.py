"""vLLM's logits processor keeps the image grammar, driven through vLLM's interface with stubs of its classes."""

import enum
import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from seed_jax.convert.llama.vllm_logits_processor import ImageGrammar  # noqa: E402

FIRST_CODE, BEGIN, END, SIZE = 10, 26, 27, 28  # 16 codes


class Direction(enum.Enum):
    UNIDIRECTIONAL = 0
    SWAP = 1


@pytest.fixture
def processor(tmp_path):
    added = {f"<img_{code:05d}>": FIRST_CODE + code for code in range(16)} | {"<img>": BEGIN, "</img>": END}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    config = SimpleNamespace(model_config=SimpleNamespace(tokenizer=str(tmp_path)))
    return ImageGrammar(config, torch.device("cpu"), False)


def update(added=(), removed=(), moved=()):
    added = [(index, SimpleNamespace(max_tokens=budget), prompt, output) for index, budget, prompt, output in added]
    return SimpleNamespace(batch_size=3, added=added, removed=list(removed), moved=list(moved))


def allowed(processor, rows: int) -> list[set[int]]:
    logits = processor.apply(torch.zeros(rows, SIZE))
    return [set(torch.nonzero(row > float("-inf"))[:, 0].tolist()) for row in logits]


TEXT = set(range(FIRST_CODE))
CODES = set(range(FIRST_CODE, BEGIN))


def test_random_answers_are_text_and_complete_images(processor):
    generator = torch.Generator().manual_seed(0)
    outputs = [[], [], []]
    budgets = [200, 100, None]
    processor.update_state(update([(row, budgets[row], [1, 5], outputs[row]) for row in range(3)]))
    for step in range(200):
        logits = torch.randn(3, SIZE, generator=generator)
        logits[:, BEGIN] += 2.0
        tokens = processor.apply(logits).argmax(-1).tolist()
        for row, token in enumerate(tokens):
            if budgets[row] is None or len(outputs[row]) < budgets[row]:
                outputs[row].append(token)
        processor.update_state(None)
        del step
    for output, budget in zip(outputs, budgets, strict=True):
        rest = list(output)
        num_images = 0
        while BEGIN in rest:
            place = rest.index(BEGIN)
            image = rest[place : place + 34]
            if len(image) < 34:
                assert budget is None  # with a budget, an image that does not fit is not begun
            else:
                assert image[33] == END
            assert set(image[1:33]) <= CODES
            del rest[place : place + 34]
            num_images += 1
        assert set(rest) <= TEXT
        assert num_images >= 2


def test_requests_that_move_or_leave_keep_their_state(processor):
    inside, text = [BEGIN, *[FIRST_CODE] * 31], [3]
    processor.update_state(update([(0, 99, [1], inside), (1, 99, [1], text), (2, 99, [1, BEGIN, FIRST_CODE], [])]))
    assert allowed(processor, 3) == [CODES, TEXT | {BEGIN}, CODES]
    processor.update_state(update(moved=[(0, 1, Direction.SWAP)]))
    inside.append(FIRST_CODE + 1)
    assert allowed(processor, 3) == [TEXT | {BEGIN}, {END}, CODES]
    # The first one leaves, and the last one takes its place.
    processor.update_state(update(removed=[0], moved=[(2, 0, Direction.UNIDIRECTIONAL)]))
    inside.append(END)
    assert allowed(processor, 2) == [CODES, TEXT | {BEGIN}]
    # A new request takes the place of another one.
    processor.update_state(update([(0, 33, None, [])]))
    assert allowed(processor, 2) == [TEXT, TEXT | {BEGIN}]


def test_unknown_tokens_and_other_tokenizers_are_refused(processor, tmp_path):
    processor.update_state(update([(0, 99, [1], [-1])]))
    with pytest.raises(RuntimeError, match="--no-async-scheduling"):
        processor.apply(torch.zeros(1, SIZE))
    config = SimpleNamespace(model_config=SimpleNamespace(tokenizer=str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"added_tokens.json does not exist"):
        ImageGrammar(config, torch.device("cpu"), False)
