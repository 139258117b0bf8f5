"""Tokenize a layout: encode its segments, build the loss mask, truncate to the maximum length."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int32

from seed_jax.data.templates.layout import SampleLayout
from seed_jax.data.text.vocabulary import Vocabulary

IGNORED = -100  # label of positions outside the loss


@dataclasses.dataclass(frozen=True)
class TemplateOptions:
    """Parameters that all tasks share; the defaults follow the original except for the validation of image codes.

    Attributes:
        max_length: truncate samples on the right to this many tokens; None for no limit.
        strict_images: reject records whose images do not have 32 codes each (the original renders them).
        whole_images: if truncation splits an image, drop that image (the original keeps a part of it).
        plain_text: treat `</s>`, `<img>`, ... in a record's texts as ordinary characters.
        drop_untrained: drop samples that truncation leaves without a trained token (the original keeps them).
    """

    max_length: int | None = None
    strict_images: bool = True
    whole_images: bool = False
    plain_text: bool = False
    drop_untrained: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class RenderedSample:
    """A rendered record, not padded.

    Attributes:
        tokens: ids beginning with BOS; empty if the record could not be rendered.
        loss_mask: True where the token itself is a training target. Aligned with `tokens`, not shifted: the loss of
            `tokens[t]` uses the logits at t - 1. The first entry may be True (pre-training) and must be ignored, since
            nothing precedes it.
        kept: whether the sample passes the template's filters; `reason` says why not.
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


def assemble(
    layout: SampleLayout, vocab: Vocabulary, options: TemplateOptions, eos_between_turns: bool = False
) -> RenderedSample:
    """Encode a layout as token ids and loss mask, and apply the template's filters."""
    if layout.segments is None:
        return RenderedSample(np.zeros(0, np.int32), np.zeros(0, bool), kept=False, reason=layout.reason)
    ids = [vocab.bos]
    trained = [layout.bos_trained]
    for index, segment in enumerate(layout.segments):
        segment_ids = vocab.encode_parts(
            (vocab.blank, *segment.parts) if segment.continues else segment.parts,
            plain=options.plain_text,
            strict_images=options.strict_images,
            as_vectors=segment.as_vectors,
        )
        if eos_between_turns and segment.ends_turn and index < len(layout.segments) - 1:
            segment_ids.append(vocab.eos)
        ids += segment_ids
        trained += [segment.trained] * len(segment_ids)
    if layout.eos:
        ids.append(vocab.eos)
        trained.append(True)
    length = _truncated_length(ids, vocab, options)
    tokens = np.array(ids[:length], np.int32)
    mask = np.array(trained[:length], bool) & layout.trained
    return _filtered(layout, tokens, mask, vocab, options)


def _truncated_length(ids: list[int], vocab: Vocabulary, options: TemplateOptions) -> int:
    if options.max_length is None or len(ids) <= options.max_length:
        return len(ids)
    length = options.max_length
    if options.whole_images and vocab.boi in (kept := ids[:length]):
        last_image = length - 1 - kept[::-1].index(vocab.boi)
        return length if vocab.eoi in kept[last_image:] else last_image
    return length


def _filtered(
    layout: SampleLayout, tokens: np.ndarray, mask: np.ndarray, vocab: Vocabulary, options: TemplateOptions
) -> RenderedSample:
    """Apply the rules that depend on the truncated ids: ignored `<unk>`, masked left side, no trained token."""
    reason = layout.reason
    if layout.ignore_unk:
        mask &= tokens != vocab.unk
    if layout.mask_through:
        delimiters = np.flatnonzero(tokens == (vocab.boi if layout.mask_through == "boi" else vocab.eoi))
        if len(delimiters):
            mask[: delimiters[0] + 1] = False
        else:  # as in the original: the labels stay and the sample is dropped
            reason = reason or f"max_length cuts off the image token that ends the masked side ({layout.mask_through})"
    if options.drop_untrained and layout.trained and not mask[1:].any():
        reason = reason or "no trained token is left"
    return RenderedSample(tokens, mask, kept=not reason, reason=reason)
