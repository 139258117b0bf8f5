"""The chat page: layout and events of Gradio around the conversations of `ChatSession`.

It is built on Blocks and Chatbot with events of its own. Gradio's ChatInterface loses the images of an edited message,
cannot stop the answer to one, and answers one user at a time.
"""

import contextlib
import dataclasses
import functools
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from seed_jax import images
from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import (
    ESCAPED_PLACEHOLDER,
    PLACEHOLDER,
    SINGLE_TURN_STYLES,
    check_placeholders,
    interleave,
)
from seed_jax.inference.chat.transcript import RecordedMessage, Transcript, as_attachment
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from seed_jax.serving.engine.request import EngineClosedError, QueueFullError
from seed_jax.serving.service import SeedService
from seed_jax.serving.web.examples import Example, make_examples
from seed_jax.serving.web.rendering import ImageFiles, render
from seed_jax.serving.web.session import AnswerOptions, ChatSession, user_message

T = TypeVar("T")
MODES = {"Text and images": "free", "Image first": "image", "Text only": "text"}
MAX_IMAGES = 16  # of a message
MAX_TEXT = 100_000  # characters of a message
ALL_HISTORY = 50  # stands for a whole conversation, as far as it fits
STATE_SECONDS = 24 * 3600  # after which the conversation of a closed tab is forgotten


@dataclasses.dataclass(frozen=True)
class PageConfig:
    """What the page shows and begins with.

    Attributes:
        model_name: name of the model.
        defaults: decoding options.
        root: path of the page.
    """

    model_name: str
    defaults: SamplingParams = SamplingParams(temperature=1.0, top_p=0.5)
    root: str = "/ui"


class ChatPage:
    """Builds the page and answers its events.

    Args:
        service: answers the conversations of all tabs.
        config: what the page shows.
        folder: directory for images, which Gradio must be allowed to serve.
    """

    def __init__(self, service: SeedService, config: PageConfig, folder: Path):
        self._service = service
        self._config = config
        self._files = ImageFiles(folder, config.root)
        self._folder = folder
        self._examples = make_examples(folder, reads_images=service.can_encode, draws_images=service.can_draw)
        self._image_size = service.image_size

    def build(self) -> gr.Blocks:
        """Return the page."""
        name = self._config.model_name
        events = functools.partial(dict, api_visibility="private", show_progress="hidden")
        with gr.Blocks(title=f"Chat with {name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            session = gr.State(None, time_to_live=STATE_SECONDS)
            with gr.Row(elem_id="header"):
                gr.Markdown(f"# {name}\nprompt style {self._service.style}", elem_id="title")
                new = gr.Button("New chat", size="sm", scale=0)
                configure = gr.Button("Settings", size="sm", scale=0)
                opened = gr.UploadButton("Open", file_types=[".zip", ".json"], size="sm", scale=0)
                download = gr.Button("Download", size="sm", scale=0)
                downloaded = gr.DownloadButton("Download", elem_id="download-file")
            chatbot = gr.Chatbot(
                elem_id="conversation",
                show_label=False,
                render_markdown=False,
                latex_delimiters=[],
                buttons=["copy"],
                layout="bubble",
                placeholder=self._placeholder(),
                examples=[self._example(example) for example in self._examples],
            )
            with gr.Row(visible=False, elem_id="edit-notice") as notice:
                gr.Markdown("Sending replaces the edited question and everything after it.")
                cancel_edit = gr.Button("Cancel", size="sm", scale=0)
            box = gr.MultimodalTextbox(
                elem_id="message",
                show_label=False,
                label="Message",
                placeholder="Message; paste or drop images",
                file_count="multiple",
                file_types=["image"],
                sources=["upload"] if self._service.can_encode else [],
                stop_btn=False,
                autofocus=True,
                max_plain_text_length=MAX_TEXT,
                max_lines=8,
            )
            settings, sidebar = self._build_settings()
            number = gr.Textbox(elem_id="edit-number", label="Question to edit", container=False)
            edit = gr.Button("Edit", elem_id="edit-button")

            outputs = [session, chatbot, box, notice]
            asked: Any = [
                box.submit(self.send, [session, box, *settings], outputs, **events(), concurrency_limit=None),
                chatbot.retry(self.retry, [session, box, *settings], outputs, **events(), concurrency_limit=None),
            ]
            box.stop(self.stop, session, **events())  # the answer's own event then shows how it ended
            chatbot.undo(self.undo, [session, box], outputs, **events())
            chatbot.example_select(self.choose_example, [session, box], outputs, **events())
            edit.click(self.edit, [session, box, number], outputs, **events())
            cancel_edit.click(self.cancel_edit, [session, box], outputs, **events())
            configure.click(lambda: gr.Sidebar(open=True), None, sidebar, **events())
            new.click(self.clear, [session, box], outputs, cancels=asked, **events())
            chatbot.clear(self.clear, [session, box], outputs, cancels=asked, **events())
            opened.upload(self.open, [session, box, opened], outputs, cancels=asked, **events())
            download.click(self.archive, session, downloaded, **events()).success(
                None, js="() => setTimeout(() => document.querySelector('#download-file').click(), 300)"
            )
        page.queue(default_concurrency_limit=None)
        return page

    def _build_settings(self) -> tuple[list[Any], gr.Sidebar]:
        defaults, max_tokens = self._config.defaults, max(self._service.max_model_len // 2, 64)
        mode_names = list(MODES) if self._service.can_encode else ["Text only"]
        with gr.Row(elem_id="images-row"):
            mode = gr.Radio(mode_names, value=mode_names[0], show_label=False, label="Answer", container=False)
        with gr.Sidebar(label="Settings", position="right", open=False) as sidebar:
            gr.Markdown("### Settings")
            seed = gr.Textbox("", label="Seed", placeholder="another one for every answer", max_lines=1)
            num_images = gr.Textbox("", label="Number of images", placeholder="as the model decides", max_lines=1)
            temperature = gr.Slider(0, 2, defaults.temperature, step=0.05, label="Temperature (0: greedy)")
            top_p = gr.Slider(0.05, 1, defaults.top_p, step=0.05, label="Top-p")
            guidance = gr.Slider(1, 10, 1, step=0.5, label="Guidance of the language model (1: none)")
            max_new_tokens = gr.Slider(
                16, max_tokens, min(defaults.max_new_tokens, max_tokens), step=1,
                label="Longest answer in tokens (an image takes 34)",
            )  # fmt: skip
            history = gr.Slider(
                0, ALL_HISTORY, ALL_HISTORY, step=1,
                label=f"Earlier questions that the model reads ({ALL_HISTORY}: all that fit)",
            )  # fmt: skip
            system = gr.Textbox(
                "", label="System prompt", lines=2, visible=self._service.style not in SINGLE_TURN_STYLES
            )
            draw_guidance = gr.Textbox(
                "", label="Guidance of the image decoder", placeholder="its own", max_lines=1,
                visible=self._service.can_draw,
            )  # fmt: skip
            close = gr.Button("Close", size="sm")  # on a phone the settings cover the page
        close.click(lambda: gr.Sidebar(open=False), None, sidebar, api_visibility="private", show_progress="hidden")
        controls = [
            mode,
            seed,
            num_images,
            temperature,
            top_p,
            guidance,
            max_new_tokens,
            history,
            system,
            draw_guidance,
        ]
        return controls, sidebar

    def _placeholder(self) -> str:
        if self._service.style in SINGLE_TURN_STYLES:
            return "This model has no instruction tuning: it continues a text, and every message stands for itself."
        return "Ask a question, attach images, or ask for a drawing."

    def _example(self, example: Example) -> Any:
        return {
            "text": example.text,
            "display_text": f"{example.label}: {example.text}",
            "files": [str(path) for path in example.images],
        }

    def _answer_options(
        self,
        mode: str,
        seed: str,
        num_images: str,
        temperature: int | float,
        top_p: int | float,
        guidance: int | float,
        max_new_tokens: int | float,
        history: int | float,
        system: str,
        draw_guidance: str,
    ) -> AnswerOptions:
        """Return the options that the controls show, in the order of `_build_settings`.

        Raises:
            UserError: a value is out of range, or values contradict each other.
        """
        params = dataclasses.replace(
            self._config.defaults,
            mode=MODES[mode],
            num_images=_number(num_images, int, "The number of images"),
            temperature=float(temperature),
            top_p=float(top_p),
            guidance_scale=float(guidance),
            max_new_tokens=int(max_new_tokens),
            seed=_number(seed, int, "The seed") or 0,
        )
        draw = DrawOptions(guidance_scale=_number(draw_guidance, float, "The guidance of the image decoder"))
        self._service.check_draw_options(draw)
        return AnswerOptions(
            params,
            seed=params.seed if seed.strip() else None,
            draw=draw,
            system=system,
            max_history=None if history >= ALL_HISTORY else int(history),
        )

    # Events: each gets the session and the content of the message box, and returns session, conversation, box, notice.

    async def send(self, session: ChatSession | None, box: dict, *settings: Any) -> AsyncGenerator[tuple, None]:
        """Answer the message in the box."""
        session = session or self._new_session()
        text, paths = box.get("text") or "", [Path(path) for path in box.get("files") or []]
        if session.is_answering or not (text.strip() or paths):
            yield self._state(session, gr.skip())
            return
        try:
            options = self._answer_options(*settings)
            message = await self._read_message(text, paths)
        except UserError as error:
            gr.Warning(str(error))
            yield self._state(session, gr.skip())
            return
        before = session.messages[:]
        if session.editing is not None:
            session.undo(session.editing)
        async with contextlib.aclosing(self._ask(session, message, options, before, box)) as states:
            async for state in states:
                yield state

    async def retry(self, session: ChatSession | None, box: dict, *settings: Any) -> AsyncGenerator[tuple, None]:
        """Answer the last question again."""
        session = session or self._new_session()
        before = session.messages[:]
        message = None if session.is_answering else session.undo()
        if message is None:
            yield self._state(session, gr.skip())
            return
        try:
            options = self._answer_options(*settings)
        except UserError as error:
            session.messages = before
            gr.Warning(str(error))
            yield self._state(session, gr.skip())
            return
        async with contextlib.aclosing(self._ask(session, message, options, before, None)) as states:
            async for state in states:
                yield state

    async def _ask(
        self,
        session: ChatSession,
        message: RecordedMessage,
        options: AnswerOptions,
        before: list[RecordedMessage],
        box: dict | None,
    ) -> AsyncGenerator[tuple, None]:
        """Yield the page while a message is answered.

        Args:
            session: the conversation, without what the answer replaces.
            message: the message.
            options: how it is answered.
            before: the conversation that comes back if nothing is answered.
            box: content of the message box that comes back then; None: the box stays as it is.
        """
        box_after: Any = gr.skip() if box is None else {"text": "", "files": []}
        num_messages = len(session.messages)
        try:
            async with contextlib.aclosing(session.ask(self._service, message, options)) as changes:
                async for _ in changes:
                    yield self._state(session, box_after)
                    box_after = gr.skip()
        except Exception as error:
            if not isinstance(error, UserError | QueueFullError | EngineClosedError):
                logging.exception("An answer of the chat page failed.")
            gr.Warning(str(error) if isinstance(error, UserError) else _apology(error))
        if len(session.messages) == num_messages:  # refused, or stopped before anything was generated
            session.messages = before
            box_after = gr.skip() if box is None else box
        yield self._state(session, box_after)

    async def stop(self, session: ChatSession | None) -> None:
        """Stop the answer."""
        if session is not None:
            session.stop()

    def undo(self, session: ChatSession | None, box: dict) -> tuple:
        """Remove the last question and its answer."""
        session = session or self._new_session()
        session.undo()
        return self._state(session, gr.skip())

    def choose_example(self, session: ChatSession | None, box: dict, chosen: gr.SelectData) -> tuple:
        """Put an example into the box."""
        example = self._examples[chosen.index if isinstance(chosen.index, int) else chosen.index[0]]
        return self._state(
            session or self._new_session(), {"text": example.text, "files": [str(path) for path in example.images]}
        )

    def edit(self, session: ChatSession | None, box: dict, number: str) -> tuple:
        """Put an earlier question into the box, with its images."""
        session = session or self._new_session()
        if session.is_answering or not number.isdecimal() or 2 * int(number) >= len(session.messages):
            return self._state(session, gr.skip())
        session.editing = int(number)
        message = session.messages[2 * session.editing]
        codes = [segment.codes for segment in message.segments if isinstance(segment, ImageSegment)]
        if any(image is None for image in message.images):
            gr.Warning("Images of this question are known as codes only: attach them again.")
        known = [(image, one) for image, one in zip(message.images, codes, strict=False) if image is not None]
        files = [str(self._files.add(image, one)) for image, one in known]
        return self._state(session, {"text": _editable_text(message), "files": files})

    def cancel_edit(self, session: ChatSession | None, box: dict) -> tuple:
        """Leave the conversation as it is."""
        session = session or self._new_session()
        session.editing = None
        return self._state(session, {"text": "", "files": []})

    async def clear(self, session: ChatSession | None, box: dict) -> tuple:
        """Begin a new conversation."""
        await self.stop(session)
        return self._state(self._new_session(), gr.skip())

    async def open(self, session: ChatSession | None, box: dict, path: str) -> tuple:
        """Continue a stored conversation."""
        await self.stop(session)
        session = session or self._new_session()
        try:
            transcript = Transcript.load(Path(path), self._service.vocabulary)
        except UserError as error:
            gr.Warning(str(error).replace(str(path), Path(path).name))
            return self._state(session, gr.skip())
        opened = self._new_session()
        opened.reset(transcript.messages)
        return self._state(opened, gr.skip())

    def archive(self, session: ChatSession | None) -> str:
        """Write the conversation as an archive and return its path."""
        if session is None or not session.messages:
            raise gr.Error("There is nothing to download yet.", print_exception=False)
        folder = self._folder / secrets.token_urlsafe(16)
        folder.mkdir()
        path = folder / "conversation.zip"
        path.write_bytes(session.transcript.to_zip())
        return str(path)

    def _new_session(self) -> ChatSession:
        return ChatSession(self._service.style)

    def _state(self, session: ChatSession, box: Any) -> tuple:
        """Return the values of the outputs.

        Args:
            session: the conversation.
            box: text and files of the message box; `gr.skip()` leaves them.
        """
        value = {} if box == gr.skip() else {"value": box}
        answering = session.is_answering
        return (
            session,
            render(session, self._files, self._image_size),
            gr.MultimodalTextbox(submit_btn=not answering, stop_btn=answering, **value),
            gr.Row(visible=session.editing is not None),
        )

    async def _read_message(self, text: str, paths: list[Path]) -> RecordedMessage:
        """Return the message of a text and image files, with the images encoded.

        Raises:
            UserError: a file is no image, or the placeholders in the text do not fit the images.
        """
        if len(paths) > MAX_IMAGES:
            raise UserError(f"The message has {len(paths)} images, at most {MAX_IMAGES} are read.")
        check_placeholders(text, len(paths))
        loaded = [images.load(path, path.name) for path in paths]
        known = [self._files.codes_of(path) for path in paths]
        encoded = iter(
            await self._service.encode([one for one, codes in zip(loaded, known, strict=True) if codes is None])
        )
        codes = [next(encoded) if one is None else one for one in known]
        return user_message(interleave(text, codes), [as_attachment(image) for image in loaded])


def _number(text: str, convert: Callable[[str], T], name: str) -> T | None:
    """Return the number in a text field, None if it is empty.

    Raises:
        UserError: it is no number.
    """
    try:
        return convert(text) if text.strip() else None
    except ValueError:
        raise UserError(f"{name} is {text[:100]!r}, expected a number.") from None


def _editable_text(message: RecordedMessage) -> str:
    """Return the text of a message with placeholders for its images, if they do not precede it."""
    segments = list(message.segments)
    texts = [
        segment.text.replace(PLACEHOLDER, ESCAPED_PLACEHOLDER) if isinstance(segment, TextSegment) else PLACEHOLDER
        for segment in segments
    ]
    leading = next((n for n, segment in enumerate(segments) if isinstance(segment, TextSegment)), len(segments))
    if all(isinstance(segment, TextSegment) for segment in segments[leading:]):
        texts = texts[leading:]
    return "".join(texts)


def _apology(error: Exception) -> str:
    """Return what a user is told of an error that is not the message's."""
    if isinstance(error, QueueFullError):
        return "Too many answers are being generated at the moment: send the message again in a while."
    if isinstance(error, EngineClosedError):
        return "The server is shutting down: send the message again when it is back."
    return "The answer failed; the server's log says why."
