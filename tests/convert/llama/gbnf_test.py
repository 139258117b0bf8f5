"""An engine that follows the GBNF grammar writes text and complete images only."""

import re

import numpy as np
import pytest

from seed_jax.convert.llama.gbnf import image_grammar
from tests.inference.generation.cases import vocabulary

IMAGE = re.compile(rb"<img>((?:<img_\d{5}>){32})</img>")


def token_bytes() -> list[bytes]:
    words = vocabulary()
    names = words.pieces(range(words.num_text, words.size))
    return [words.token_bytes(token) for token in range(words.num_text)] + [name.encode() for name in names]


class Matcher:
    """A grammar of xgrammar for the tokens of a small vocabulary."""

    def __init__(self, grammar: str):
        # Not in the extra `test`: it brings Triton, hundreds of megabytes.
        xgrammar = pytest.importorskip("xgrammar")
        words = vocabulary()
        tokens = xgrammar.TokenizerInfo(token_bytes(), xgrammar.VocabType.RAW, stop_token_ids=[words.eos])
        compiled = xgrammar.GrammarCompiler(tokens, max_threads=1).compile_grammar(grammar)
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._mask = xgrammar.allocate_token_bitmask(1, words.size)

    def reset(self) -> None:
        self._matcher.reset()

    def accept(self, token: int) -> bool:
        return self._matcher.accept_token(token)

    def allowed(self) -> np.ndarray:
        self._matcher.fill_next_token_bitmask(self._mask)
        bits = np.unpackbits(self._mask.numpy().view(np.uint8)[0], bitorder="little")
        return np.flatnonzero(bits[: vocabulary().size])


@pytest.fixture(scope="module")
def matcher():
    return Matcher(image_grammar(64))


def test_random_answers_are_text_and_complete_images(matcher):
    words, tokens, draw = vocabulary(), token_bytes(), np.random.default_rng(0)
    num_images = 0
    for _ in range(20):
        matcher.reset()
        ids: list[int] = []
        while len(ids) < 300:
            choices = matcher.allowed()
            # A model of these tokens seldom spells them out.
            image_tokens = choices[choices >= words.first_code]
            inside = len(image_tokens) > 0 and words.boi not in image_tokens
            prefers = len(image_tokens) > 0 and draw.random() < (0.95 if inside else 0.1)
            token = int(draw.choice(image_tokens if prefers else choices))
            if token == words.eos:
                break
            assert matcher.accept(token)
            ids.append(token)
        written = b"".join(tokens[token] for token in ids)
        images = IMAGE.findall(written)
        rest = IMAGE.sub(b"", written)
        # Only the last image may be incomplete, where the token budget ended the answer.
        assert b"</img>" not in rest
        assert b"<img_" not in rest.partition(b"<img>")[0]
        codes = [int(code) for image in images for code in re.findall(rb"\d{5}", image)]
        assert max(codes, default=0) < 64
        num_images += len(images)
    assert num_images > 10


def test_inside_an_image_there_are_only_codes_and_at_its_end_only_the_end(matcher):
    words = vocabulary()
    matcher.reset()
    assert matcher.accept(words.boi)
    codes = list(range(words.first_code, words.first_code + words.num_codes))
    for code in codes[:32]:
        choices = set(matcher.allowed().tolist())
        assert set(codes) <= choices
        assert not {words.eos, words.boi, words.eoi} & choices
        assert matcher.accept(code)
    choices = set(matcher.allowed().tolist())
    assert words.eoi in choices
    assert not {words.eos, words.boi, *codes} & choices


@pytest.mark.parametrize(("num_codes", "good", "bad"), [(8192, (0, 7999, 8191), (8192, 8200, 9000)), (10, (9,), (10,))])
def test_codes_end_where_the_vocabulary_ends(num_codes, good, bad):
    rule = next(line for line in image_grammar(num_codes).splitlines() if line.startswith("code"))
    pattern = re.compile(rule.partition("::=")[2].replace('"', "").replace(" ", ""))
    assert all(pattern.fullmatch(f"<img_{code:05d}>") for code in good)
    assert not any(pattern.fullmatch(f"<img_{code:05d}>") for code in bad)
