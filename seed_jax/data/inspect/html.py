"""One HTML page that shows what is in shards or a mixture; it needs no other file and no network."""

import base64
import io
import itertools
import json
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax import images
from seed_jax.data.shards.records import Item, Record
from seed_jax.data.templates import Sample
from seed_jax.data.text.vocabulary import Vocabulary

CSS = Path(__file__).with_name("page.css")
THUMBNAIL = 200  # pixels of the longer side
_BYTE = re.compile("<0x([0-9A-F]{2})>")
Decoder = Callable[[np.ndarray], Sequence[Image.Image]]
"""Codes [N, 32] to pictures."""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the page; sections are headings and their HTML."""
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>" for name, content in sections if content)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS.read_text(encoding='utf-8')}</style></head>"
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}</main></body></html>\n'
    )


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; numbers stand on the right."""
    columns = [[str(row[column]) for row in rows] for column in range(len(names))]
    numeric = [any(column) and all(map(_is_number, column)) for column in columns]
    kinds = [' class="number"' if each else "" for each in numeric]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, names, strict=True))
    lines = [
        "".join(f"<td{kind}>{escape(str(cell))}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _is_number(cell: str) -> bool:
    return cell.strip("% -").replace(",", "").replace(".", "").isdigit() or cell in ("", "-")


def sample_card(record: Record, name: str, samples: Sequence[Sample], vocab: Vocabulary | None, decoded: list) -> str:
    """Return a record as people see it, and below it the tokens that are made of it.

    Args:
        decoded: pictures for the record's codes, in order; empty where there is no decoder.
    """
    pictures = iter(decoded)
    items = "".join(
        f'<div class="texts">{"".join(_item(item, pictures) for item in run)}</div>'
        if texts
        else "".join(_item(item, pictures) for item in run)
        for texts, run in itertools.groupby(record.items, lambda item: isinstance(item, str))
    )
    head = f"<span>{escape(name)}</span><span>{escape(record.id)}</span><span>{escape(record.source)}</span>"
    meta = json.dumps(record.meta, ensure_ascii=False, sort_keys=True) if record.meta else ""
    more = f'<p class="meta">{escape(_clipped(meta, 600))}</p>' if meta else ""
    shown = "<hr>".join(tokens_html(sample, vocab) for sample in samples) if vocab else ""
    tokens = f'<div class="tokens">{shown}</div>{_ids(samples)}' if shown else ""
    return (
        f'<article class="sample"><div class="id">{head}</div><div class="items">{items}</div>{more}{tokens}</article>'
    )


def _item(item: Item, decoded: Any) -> str:
    if isinstance(item, str):
        return f"<p>{escape(_clipped(item, 1500))}</p>"
    if isinstance(item, bytes):
        image = images.load(item)
        size = f"{image.width} x {image.height}, {len(item):,} bytes"
        return f'<figure class="picture">{_img(image)}<figcaption>{size}</figcaption></figure>'
    picture = next(decoded, None)
    drawn = _img(picture) if picture is not None else ""
    cells = "".join(f'<i style="background:{_colour(code)}" title="{code}">{code}</i>' for code in item.tolist())
    return f'<figure class="picture">{drawn}<div class="codes">{cells}</div><figcaption>32 codes</figcaption></figure>'


def _img(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _colour(code: int) -> str:
    """Return a colour of its own for every code: near codes need not look alike."""
    return f"hsl({code * 137.508 % 360:.0f} {45 + code % 7 * 5}% {72 + code % 5 * 3}%)"


def tokens_html(sample: Sample, vocab: Vocabulary) -> str:
    """Return the tokens of a sample, trained ones marked; an image is one box."""
    if not len(sample):
        return f'<p class="none">left out: {escape(sample.reason)}</p>'
    pieces, out, place = vocab.pieces(sample.tokens), [], 0
    while place < len(sample):
        end = place + 1
        if sample.tokens[place] == vocab.boi:
            while end < len(sample) and vocab.code_of(sample.tokens[end]) is not None:
                end += 1
            end += end < len(sample) and sample.tokens[end] == vocab.eoi
        trained = " on" if sample.loss_mask[place:end].any() and place else ""
        ids = " ".join(map(str, sample.tokens[place:end].tolist()))
        kind, text = ("image", f"image, {end - place} tokens") if end > place + 1 else ("", _shown(pieces[place]))
        out.append(f'<span class="{kind}{trained}" title="{place}: {ids}">{escape(text)}</span>')
        place = end
    note = "" if sample.kept else f'<p class="none">left out: {escape(sample.reason)}</p>'
    return "".join(out) + note


def _shown(piece: str) -> str:
    if piece == "<0x0A>":
        return "\u21b5"
    if byte := _BYTE.fullmatch(piece):  # a character that has no piece of its own comes byte by byte
        character = chr(int(byte[1], 16))
        return character if "!" <= character <= "~" else byte[1]
    return piece.replace("\u2581", "\u00b7")


def _ids(samples: Sequence[Sample]) -> str:
    ids = " | ".join(" ".join(map(str, sample.tokens.tolist())) for sample in samples)
    lengths = " + ".join(str(len(sample)) for sample in samples)
    return f'<details><summary>{lengths} token ids</summary><p class="ids">{escape(ids)}</p></details>'


LEGEND = (
    '<p class="legend"><span style="--c:var(--trained)">trained text</span><span style="--c:var(--plain)">not trained'
    '</span><span style="--c:var(--image)">image (trained where underlined)</span></p>'
)
_KINDS = ("plain", "trained", "image", "image on")


def packed_rows(batch: dict[str, np.ndarray], vocab: Vocabulary) -> str:
    """Return rows as strips: a border between segments, colours for image, trained and untrained tokens."""
    return "".join(
        f'<div class="row">{"".join(_segments(batch, row, vocab))}</div>' for row in range(len(batch["tokens"]))
    )


def _segments(batch: dict[str, np.ndarray], row: int, vocab: Vocabulary) -> list[str]:
    tokens, ids = batch["tokens"][row], batch["segment_ids"][row]
    is_image = (tokens >= vocab.first_code) | (tokens == vocab.boi) | (tokens == vocab.eoi)
    # The mask stands at the token before the one that is trained.
    trained = np.concatenate([[False], batch["loss_mask"][row, :-1] > 0])
    kinds = 2 * is_image + trained
    out = []
    for segment in range(1, int(ids.max()) + 1):
        inside = np.flatnonzero(ids == segment)
        stretches = np.split(inside, np.flatnonzero(np.diff(kinds[inside])) + 1)
        one, width = 100 / len(inside), 100 * len(inside) / len(tokens)
        parts = "".join(
            f'<b class="{_KINDS[kinds[each[0]]]}" '
            f'style="left:{one * (each[0] - inside[0]):.2f}%;width:{one * len(each):.2f}%"></b>'
            for each in stretches
        )
        out.append(f'<i style="width:{width:.3f}%" title="segment {segment}: {len(inside)} tokens">{parts}</i>')
    return out


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
