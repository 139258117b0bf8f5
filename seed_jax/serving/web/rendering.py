"""Conversations as messages of Gradio's Chatbot: text as it is, images as HTML with alternative text."""

import html
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from seed_jax.inference.chat.prompts import USER
from seed_jax.inference.chat.transcript import RecordedMessage
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from seed_jax.serving.web.session import Answer, ChatSession, ImagePart

NOTES = {"length": "reached the maximum length", "interrupted": "stopped"}
ALT_CHARACTERS = 120


class ImageFiles:
    """Images as files with unguessable names, which Gradio serves to those who may see the page.

    Args:
        folder: directory of the files, which Gradio is allowed to serve.
        root: path of the page.
    """

    def __init__(self, folder: Path, root: str):
        self.folder = folder
        self._root = root
        self._codes: dict[str, tuple[int, ...]] = {}

    def add(self, image: Image.Image, codes: Sequence[int]) -> Path:
        """Write an image, unless it has been written; return its path."""
        name = image.info.get("seed_jax_file")
        if name is None:
            name = f"{secrets.token_urlsafe(16)}.png"
            image.save(self.folder / name, format="PNG")
            image.info["seed_jax_file"] = name
            self._codes[name] = tuple(codes)
        return self.folder / name

    def url(self, image: Image.Image, codes: Sequence[int]) -> str:
        """Return the address of an image."""
        return f"{self._root}/gradio_api/file={self.add(image, codes)}"

    def codes_of(self, path: Path) -> tuple[int, ...] | None:
        """Return the codes of an image that came from here, so that an edited message means the same images."""
        return self._codes.get(path.name)


def render(session: ChatSession, files: ImageFiles, image_size: int | None) -> list[dict[str, Any]]:
    """Return the conversation as the value of a Chatbot.

    Args:
        session: the conversation.
        files: where images are written.
        image_size: side of drawn images.
    """
    history = session.messages
    question = [session.question] if session.question is not None else []
    rendered, last_question = [], ""
    for index, message in enumerate([*history, *question]):
        if message.role == USER:
            last_question = _plain_text(message)
            content = [_question(message, index, session, files)]
        else:
            content = [*_answer_parts(message, last_question, files), _footer(message.seed, message.finish_reason)]
        rendered.append({"role": message.role, "content": content})
    if session.answer is not None:
        content = list(_growing_parts(session.answer, last_question, files, image_size))
        rendered.append({"role": "assistant", "content": content})
    return rendered


def _question(message: RecordedMessage, index: int, session: ChatSession, files: ImageFiles) -> gr.HTML:
    number, images = index // 2, iter(message.images)
    parts, count = [], 0
    if index and index == session.num_dropped:
        above = "question above" if number == 1 else f"{number} questions above"
        parts.append(f'<p class="dropped">The model no longer reads the {above}.</p>')
    for segment in message.segments:
        if isinstance(segment, TextSegment):
            parts.append(f'<span class="words">{html.escape(segment.text)}</span>')
        elif isinstance(segment, ImageSegment):
            count += 1
            image = next(images, None)
            parts.append(_figure(image, segment.codes, f"Image {count} of question {number + 1}", files, "attached"))
    if not session.is_answering:
        label = f"Edit question {number + 1}"
        parts.append(f'<button class="edit" data-edit="{number}" aria-label="{label}" title="{label}">&#9998;</button>')
    dimmed = " replaced" if session.editing is not None and number >= session.editing else ""
    return gr.HTML(f'<div class="question{dimmed}">{"".join(parts)}</div>')


def _answer_parts(message: RecordedMessage, question: str, files: ImageFiles) -> Iterator[dict[str, str] | gr.HTML]:
    images, count = iter(message.images), 0
    for segment in message.segments:
        if isinstance(segment, TextSegment):
            yield _text(segment.text)
        elif isinstance(segment, ImageSegment):
            count += 1
            yield gr.HTML(_figure(next(images, None), segment.codes, _alt(count, question), files, "drawn"))


def _growing_parts(
    answer: Answer, question: str, files: ImageFiles, image_size: int | None
) -> Iterator[dict[str, str] | gr.HTML]:
    count = 0
    for part in answer.parts:
        if isinstance(part, str):
            yield _text(part)
        elif part.image is not None and part.codes is not None:
            count += 1
            yield gr.HTML(_figure(part.image, part.codes, _alt(count, question), files, "drawn"))
        else:
            count += 1
            yield gr.HTML(_progress(part, count, draws=image_size is not None))
    if not answer.parts:
        yield gr.HTML('<p class="waiting" role="status">Thinking &hellip;</p>')


def _text(text: str) -> dict[str, str]:
    """Return a text part; the Chatbot interprets HTML even without Markdown."""
    return {"type": "text", "text": html.escape(text, quote=False)}


def _figure(image: Image.Image | None, codes: Sequence[int], alt: str, files: ImageFiles, kind: str) -> str:
    if image is None:
        numbers = " ".join(map(str, codes))
        return f'<details class="codes"><summary>{html.escape(alt)}: codes only</summary>{numbers}</details>'
    url, alt = html.escape(files.url(image, codes)), html.escape(alt)
    size = f'width="{image.width}" height="{image.height}"'
    return (
        f'<a class="{kind}" href="{url}" target="_blank" rel="noopener" title="Open in full size">'
        f'<img src="{url}" alt="{alt}" {size}></a>'
    )


def _progress(part: ImagePart, number: int, *, draws: bool) -> str:
    if part.codes is None or not draws:
        text, value = f"Image {number}: writing its codes &hellip;", ""
    else:
        text = f"Drawing image {number} &hellip;"
        value = f'value="{part.step}" max="{part.steps}"' if part.steps else ""
    bar = f'<progress {value} aria-label="Progress of image {number}"></progress>'
    return f'<div class="pending" role="status"><span>{text}</span>{bar}</div>'


def _footer(seed: int | None, finish_reason: str | None) -> gr.HTML:
    notes = [f"seed {seed}"] if seed is not None else []
    notes += [NOTES[finish_reason]] if finish_reason in NOTES else []
    return gr.HTML(f'<p class="footer">{" &middot; ".join(notes)}</p>')


def _alt(number: int, question: str) -> str:
    shortened = question[:ALT_CHARACTERS] + ("..." if len(question) > ALT_CHARACTERS else "")
    return f"Drawn image {number}: {shortened}" if question else f"Drawn image {number}"


def _plain_text(message: RecordedMessage) -> str:
    texts = [segment.text for segment in message.segments if isinstance(segment, TextSegment)]
    return " ".join(" ".join(texts).split())
