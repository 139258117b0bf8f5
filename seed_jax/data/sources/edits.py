"""Pairs of images with an editing instruction: InstructPix2Pix, MagicBrush, and lists of such pairs.

- InstructPix2Pix: the folder with `seeds.json`; its subfolders hold `prompt.json`, `<seed>_0.jpg` and `<seed>_1.jpg`;
- MagicBrush: `edit_turns.json` or `edit_sessions.json`, one pair per turn; images in `images/<number>/` beside it;
- lists of `{"source": "a.png", "target": "b.png", "instruction": "..."}`, also with `instruction_gpt` and `response`.

Tasks: sft.edit, pretrain.edit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import (
    ListSource,
    NumberedEntry,
    as_object,
    list_entries,
    remaining_metadata,
    text_value,
)
from seed_jax.data.sources.samples import FileSlice, InputFile, RawSample, SkippedSample, SkipSampleError
from seed_jax.errors import UserError
from seed_jax.files import MAX_TEXT_BYTES, parse_json, read_bytes

_SOURCE = ("source", "input", "source_image", "original_image", "source_img")
_TARGET = ("target", "output", "target_image", "edited_image", "target_img")
_INSTRUCTION = ("instruction", "edit", "edit_prompt")
SEEDS = "seeds.json"
SESSIONS = "edit_sessions.json"
TURNS = "edit_turns.json"


class EditsSource(ListSource):
    """Read lists of edits; one sample per pair of images."""

    kind = "edits"
    patterns = (SEEDS, SESSIONS, TURNS, "*.jsonl")
    what = "lists of edits"

    def entries(self, file: InputFile) -> Iterator[NumberedEntry | SkippedSample]:
        if file.path.name == SEEDS:
            return enumerate(_seeds(file.path), 1)
        if file.path.name == SESSIONS:
            sessions = (turns for _, turns in json_stream.members(file.path))
            return enumerate((turn for turns in sessions for turn in (turns if isinstance(turns, list) else [None])), 1)
        return list_entries(file.path)

    def sample(self, name: str, entry: Any, file: InputFile) -> RawSample:
        if isinstance(entry, tuple):
            folder, seed = entry
            return self._instruct_pix2pix(name, folder, seed, file)
        entry = as_object(entry)
        names = [text_value(entry, keys, "image name") for keys in (_SOURCE, _TARGET)]
        if file.path.name in (SESSIONS, TURNS):
            names = [_magicbrush_path(image, self.images.location is None) for image in names]
        images = [self.find_image(image, file) for image in names]
        instruction = text_value(entry, _INSTRUCTION, "instruction")
        return RawSample(name, (*images, instruction), remaining_metadata(entry, _INSTRUCTION))

    def _instruct_pix2pix(self, name: str, folder: Any, seed: Any, file: InputFile) -> RawSample:
        if not isinstance(folder, str) or not isinstance(seed, str):
            raise SkipSampleError("no image name", f"{folder!r}, {seed!r}"[:80])
        prompt = self.images.find(f"{folder}/prompt.json", file.path)
        try:
            text = prompt.read_bytes(MAX_TEXT_BYTES) if isinstance(prompt, FileSlice) else read_bytes(prompt)
            instruction = text_value(as_object(parse_json(text)), ("edit",), "instruction")
        except (OSError, ValueError, UserError) as error:
            raise SkipSampleError("no instruction", str(error)) from error
        images = [self.find_image(f"{folder}/{seed}_{number}.jpg", file) for number in (0, 1)]
        return RawSample(name, (*images, instruction), {"folder": folder, "seed": seed})


def _seeds(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield (folder, seed) of every pair of InstructPix2Pix."""
    for element in json_stream.elements(path):
        folder, seeds = element if isinstance(element, list) and len(element) == 2 else (None, [None])
        yield from ((folder, seed) for seed in (seeds if isinstance(seeds, list) else [None]))


def _magicbrush_path(name: str, beside_list: bool) -> str:
    """Return the path of an image: MagicBrush keeps `139306-output1.png` in a folder 139306 of `images`."""
    path = f"{name.partition('-')[0]}/{name}"
    return f"images/{path}" if beside_list else path
