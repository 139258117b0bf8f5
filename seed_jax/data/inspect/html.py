"""Self-contained HTML page about shards or a mixture: no other files, no network access."""

import base64
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.data.inspect.summary import truncate
from seed_jax.data.shards.records import Item, Record
from seed_jax.data.templates import RenderedSample
from seed_jax.data.text.vocabulary import SPACE_SYMBOL, Vocabulary

CSS = Path(__file__).with_name("page.css")
THUMBNAIL = 200  # pixels of the longer side
_BYTE = re.compile("<0x([0-9A-F]{2})>")
Decoder = Callable[[np.ndarray], Sequence[Image.Image]]
"""Renders codes [N, 32] as N images."""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the page; sections are (heading, HTML), those without HTML are omitted."""
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>" for name, content in sections if content)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS.read_text(encoding='utf-8')}</style></head>"
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}</main></body></html>\n'
    )


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; numeric columns are right-aligned."""
    columns = [[str(row[column]) for row in rows] for column in range(len(names))]
    numeric = [any(column) and all(map(_is_number, column)) for column in columns]
    attributes = [' class="number"' if is_numeric else "" for is_numeric in numeric]
    head = "".join(f"<th{attribute}>{escape(name)}</th>" for attribute, name in zip(attributes, names, strict=True))
    lines = [
        "".join(f"<td{attribute}>{escape(str(cell))}</td>" for attribute, cell in zip(attributes, row, strict=True))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _is_number(cell: str) -> bool:
    return cell.strip("% -").replace(",", "").replace(".", "").isdigit() or cell in ("", "-")


def sample_card(
    record: Record,
    name: str,
    samples: Sequence[RenderedSample],
    vocab: Vocabulary | None,
    decoded: Sequence[Image.Image],
) -> str:
    """Return a record as readers see it, followed by its tokens.

    Args:
        record: the record.
        name: heading of the card.
        samples: the samples rendered from the record.
        vocab: vocabulary of the samples, or None to omit tokens.
        decoded: images of the record's codes, in order; empty without a decoder.
    """
    images_of_codes = iter(decoded)
    items = "".join(
        f'<div class="texts">{"".join(_item_html(item, images_of_codes) for item in run)}</div>'
        if texts
        else "".join(_item_html(item, images_of_codes) for item in run)
        for texts, run in itertools.groupby(record.items, lambda item: isinstance(item, str))
    )
    head = f"<span>{escape(name)}</span><span>{escape(record.id)}</span><span>{escape(record.source)}</span>"
    meta = json.dumps(record.meta, ensure_ascii=False, sort_keys=True) if record.meta else ""
    more = f'<p class="meta">{escape(truncate(meta, 600))}</p>' if meta else ""
    rendered = "<hr>".join(tokens_html(sample, vocab) for sample in samples) if vocab else ""
    tokens = f'<div class="tokens">{rendered}</div>{_ids(samples)}' if rendered else ""
    return (
        f'<article class="sample"><div class="id">{head}</div><div class="items">{items}</div>{more}{tokens}</article>'
    )


def _item_html(item: Item, images_of_codes: Iterator[Image.Image]) -> str:
    if isinstance(item, str):
        return f"<p>{escape(truncate(item, 1500))}</p>"
    if isinstance(item, bytes):
        image = images.load(item)
        size = f"{image.width} x {image.height}, {len(item):,} bytes"
        return f'<figure class="image">{_img(image)}<figcaption>{size}</figcaption></figure>'
    image = next(images_of_codes, None)
    decoded = _img(image) if image is not None else ""
    cells = "".join(f'<i style="background:{_colour(code)}" title="{code}">{code}</i>' for code in item.tolist())
    return f'<figure class="image">{decoded}<div class="codes">{cells}</div><figcaption>32 codes</figcaption></figure>'


def _img(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _colour(code: int) -> str:
    """Return a distinct colour for every code: neighbouring codes are unrelated."""
    return f"hsl({code * 137.508 % 360:.0f} {45 + code % 7 * 5}% {72 + code % 5 * 3}%)"


def tokens_html(sample: RenderedSample, vocab: Vocabulary) -> str:
    """Return the tokens of a sample with trained ones marked; an image is one box."""
    if not len(sample):
        return f'<p class="none">dropped: {escape(sample.reason)}</p>'
    pieces = vocab.pieces(sample.tokens)
    spans = []
    start = 0
    while start < len(sample):
        end = start + 1
        if sample.tokens[start] == vocab.boi:
            while end < len(sample) and vocab.code_of(sample.tokens[end]) is not None:
                end += 1
            end += end < len(sample) and sample.tokens[end] == vocab.eoi
        trained = " on" if sample.loss_mask[start:end].any() and start else ""
        ids = " ".join(map(str, sample.tokens[start:end].tolist()))
        kind, text = (
            ("image", f"image, {end - start} tokens") if end > start + 1 else ("", visible_piece(pieces[start]))
        )
        spans.append(f'<span class="{kind}{trained}" title="{start}: {ids}">{escape(text)}</span>')
        start = end
    note = "" if sample.kept else f'<p class="none">dropped: {escape(sample.reason)}</p>'
    return "".join(spans) + note


def visible_piece(piece: str) -> str:
    """Make white space and bytes of a piece visible."""
    if piece == "<0x0A>":
        return "\u21b5"
    if byte := _BYTE.fullmatch(piece):  # characters without a piece of their own are encoded byte by byte
        character = chr(int(byte[1], 16))
        return character if "!" <= character <= "~" else byte[1]
    return piece.replace(SPACE_SYMBOL, "\u00b7")


def _ids(samples: Sequence[RenderedSample]) -> str:
    ids = " | ".join(" ".join(map(str, sample.tokens.tolist())) for sample in samples)
    lengths = " + ".join(str(len(sample)) for sample in samples)
    return f'<details><summary>{lengths} token ids</summary><p class="ids">{escape(ids)}</p></details>'


LEGEND = (
    '<p class="legend"><span style="--c:var(--trained)">trained text</span><span style="--c:var(--plain)">not trained'
    '</span><span style="--c:var(--image)">image (trained where underlined)</span></p>'
)
_TOKEN_CLASSES = ("plain", "trained", "image", "image on")


def packed_rows(batch: dict[str, np.ndarray], vocab: Vocabulary) -> str:
    """Return packed rows as strips with segment borders and colours for image, trained and untrained tokens."""
    return "".join(
        f'<div class="row">{"".join(_segments(batch, row, vocab))}</div>' for row in range(len(batch["tokens"]))
    )


def _segments(batch: dict[str, np.ndarray], row: int, vocab: Vocabulary) -> list[str]:
    tokens = batch["tokens"][row]
    ids = batch["segment_ids"][row]
    is_image = (tokens >= vocab.first_code) | (tokens == vocab.boi) | (tokens == vocab.eoi)
    # The mask is at the position before the trained token.
    trained = np.concatenate([[False], batch["loss_mask"][row, :-1] > 0])
    kinds = 2 * is_image + trained
    segments = []
    for segment in range(1, int(ids.max()) + 1):
        inside = np.flatnonzero(ids == segment)
        runs = np.split(inside, np.flatnonzero(np.diff(kinds[inside])) + 1)
        token_width = 100 / len(inside)
        bars = "".join(
            f'<b class="{_TOKEN_CLASSES[kinds[run[0]]]}" '
            f'style="left:{token_width * (run[0] - inside[0]):.2f}%;width:{token_width * len(run):.2f}%"></b>'
            for run in runs
        )
        width = 100 * len(inside) / len(tokens)
        segments.append(f'<i style="width:{width:.3f}%" title="segment {segment}: {len(inside)} tokens">{bars}</i>')
    return segments
