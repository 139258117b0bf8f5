"""The image grammar in GBNF, the grammar format of llama.cpp, which xgrammar and llguidance read too."""

from seed_jax.data.text.vocabulary import CODES_PER_IMAGE

# Text has no "<" that could begin an image token: these engines match characters, not tokens.
_GRAMMAR = """\
# Text and images; an image is <img>, {count} codes and </img>. llama-cli --grammar-file THIS_FILE
root ::= (text | image)*
text ::= [^<] | "<" [^</i]
image ::= "<img>" code{{{count}}} "</img>"
code ::= "<img_" {numbers} ">"
"""


def image_grammar(num_codes: int) -> str:
    """Return the grammar for a vocabulary with the tokens `<img_00000>` to `<img_{num_codes - 1}>`.

    An answer always consists of text and complete images with existing codes. What it cannot promise is that the answer
    does not end within an image: leave room for 34 tokens per image.
    """
    return _GRAMMAR.format(count=CODES_PER_IMAGE, numbers=_numbers_up_to(f"{num_codes - 1:05d}"))


def _numbers_up_to(last: str) -> str:
    """Return an expression for the numbers of as many digits as `last` that are not greater."""
    first, rest = last[0], last[1:]
    if not rest:
        return f"[0-{first}]"
    if not first.strip("0"):
        return f'"0" {_numbers_up_to(rest)}'
    below = f"[0-{int(first) - 1}]" + " [0-9]" * len(rest)
    return f'({below} | "{first}" {_numbers_up_to(rest)})'
