"""From a layout to token ids: encode the segments, mark what is trained, cut at the maximum length."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int32

from seed_jax.data.templates.layout import Layout
from seed_jax.data.text.vocabulary import Vocabulary

IGNORED = -100  # the label of positions outside the loss


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings that every task has; the defaults follow the original except for the check on image codes.

    Attributes:
        max_length: cut samples on the right to this many tokens; None keeps them whole.
        strict_images: refuse records whose images do not have 32 codes each (the original renders them).
        whole_images: where the cut falls inside an image, leave that image out (the original keeps a part of it).
        plain_text: read `</s>`, `<img>`, ... inside a record's texts as ordinary characters.
        drop_untrained: drop samples that the cut has left without a trained token (the original keeps them).
    """

    max_length: int | None = None
    strict_images: bool = True
    whole_images: bool = False
    plain_text: bool = False
    drop_untrained: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A rendered record, not padded, with the filters' verdict.

    Attributes:
        tokens: ids from BOS on; empty where the record could not be rendered.
        loss_mask: True where the token itself is a target of training. Aligned with `tokens`, not shifted: the loss of
            `tokens[t]` comes from the logits at t - 1. The first entry can be True (pre-training) and must be ignored,
            since nothing of the sample precedes it.
        kept: whether the sample survives the filters; `reason` says why not.
    """

    tokens: Int32[np.ndarray, " T"]
    loss_mask: Bool[np.ndarray, " T"]
    kept: bool = True
    reason: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> Int32[np.ndarray, " T"]:
        """Targets aligned with `tokens`: the token, or -100 outside the loss."""
        return np.where(self.loss_mask, self.tokens, np.int32(IGNORED))


def assemble(layout: Layout, vocab: Vocabulary, options: Options, eos_between_turns: bool = False) -> Sample:
    """Encode a layout: ids, loss mask, and whether the sample is kept."""
    if layout.segments is None:
        return Sample(np.zeros(0, np.int32), np.zeros(0, bool), kept=False, reason=layout.reason)
    tokens, mask = [vocab.bos], [layout.bos_trained]
    for place, segment in enumerate(layout.segments):
        ids = vocab.encode_parts(segment.parts, plain=options.plain_text, strict_images=options.strict_images)
        if eos_between_turns and segment.ends_turn and place < len(layout.segments) - 1:
            ids.append(vocab.eos)
        tokens += ids
        mask += [segment.trained] * len(ids)
    if layout.eos:
        tokens.append(vocab.eos)
        mask.append(True)
    length = _cut(tokens, vocab, options)
    tokens, mask = np.array(tokens[:length], np.int32), np.array(mask[:length], bool) & layout.trained
    return _filtered(layout, tokens, mask, vocab, options)


def _cut(tokens: list[int], vocab: Vocabulary, options: Options) -> int:
    """Return how many tokens stay."""
    if options.max_length is None or len(tokens) <= options.max_length:
        return len(tokens)
    length = options.max_length
    if options.whole_images and vocab.boi in (kept := tokens[:length]):
        last = length - 1 - kept[::-1].index(vocab.boi)
        return length if vocab.eoi in kept[last:] else last
    return length


def _filtered(layout: Layout, tokens: np.ndarray, mask: np.ndarray, vocab: Vocabulary, options: Options) -> Sample:
    """Apply the rules that look at the cut ids: ignored `<unk>`, a masked left side, nothing left to train."""
    reason = layout.reason
    if layout.ignore_unk:
        mask &= tokens != vocab.unk
    if layout.mask_through:
        found = np.flatnonzero(tokens == (vocab.boi if layout.mask_through == "boi" else vocab.eoi))
        if len(found):
            mask[: found[0] + 1] = False
        else:  # as the original: labels stay, the sample goes
            reason = reason or f"max_length cuts off the image token that ends the masked side ({layout.mask_through})"
    if options.drop_untrained and layout.trained and not mask[1:].any():
        reason = reason or "no trained token is left"
    return Sample(tokens, mask, kept=not reason, reason=reason)
