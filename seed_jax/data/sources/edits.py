"""Pairs of pictures with an instruction: InstructPix2Pix, MagicBrush, and lists of such pairs.

- InstructPix2Pix: the folder with `seeds.json`; its subfolders hold `prompt.json`, `<seed>_0.jpg` and `<seed>_1.jpg`;
- MagicBrush: `edit_turns.json` or `edit_sessions.json`, every turn a pair; pictures in `images/<number>/` beside it;
- lists of `{"source": "a.png", "target": "b.png", "instruction": "..."}`, also with `instruction_gpt` and `response`.

Tasks: sft.edit, pretrain.edit.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.listed import Listed, Numbered, entry_of, list_entries, rest, text
from seed_jax.data.sources.units import Bad, InputFile, Raw, UnusableError

_SOURCE = ("source", "input", "source_image", "original_image", "source_img")
_TARGET = ("target", "output", "target_image", "edited_image", "target_img")
_INSTRUCTION = ("instruction", "edit", "edit_prompt")
SEEDS, SESSIONS, TURNS = "seeds.json", "edit_sessions.json", "edit_turns.json"


class EditsSource(Listed):
    """Read lists of edits; a work unit is one pair of pictures."""

    kind = "edits"
    patterns = (SEEDS, SESSIONS, TURNS, "*.jsonl")
    what = "lists of edits"

    def entries(self, file: InputFile) -> Iterator[Numbered | Bad]:
        if file.path.name == SEEDS:
            return enumerate(_seeds(file.path), 1)
        if file.path.name == SESSIONS:
            sessions = (turns for _, turns in json_stream.members(file.path))
            return enumerate((turn for turns in sessions for turn in (turns if isinstance(turns, list) else [None])), 1)
        return list_entries(file.path)

    def unit(self, name: str, entry: Any, file: InputFile) -> Raw:
        if isinstance(entry, tuple):
            return self._generated(name, *entry, file)
        entry = entry_of(entry)
        names = [text(entry, keys, "picture named") for keys in (_SOURCE, _TARGET)]
        if file.path.name in (SESSIONS, TURNS):
            names = [_magicbrush(each, self.pictures.place is None) for each in names]
        pictures = [self.picture(each, file) for each in names]
        return Raw(name, (*pictures, text(entry, _INSTRUCTION, "instruction")), rest(entry, _INSTRUCTION))

    def _generated(self, name: str, folder: Any, seed: Any, file: InputFile) -> Raw:
        """Return a pair of InstructPix2Pix."""
        if not isinstance(folder, str) or not isinstance(seed, str):
            raise UnusableError("no picture named", f"{folder!r}, {seed!r}"[:80])
        prompt = self.picture(f"{folder}/prompt.json", file)
        try:
            instruction = text(entry_of(json.loads(prompt.read_bytes())), ("edit",), "instruction")
        except (OSError, ValueError, RecursionError) as error:
            raise UnusableError("no instruction", str(error)) from error
        pictures = [self.picture(f"{folder}/{seed}_{number}.jpg", file) for number in (0, 1)]
        return Raw(name, (*pictures, instruction), {"folder": folder, "seed": seed})


def _seeds(path: Path) -> Iterator[tuple[Any, Any]]:
    for each in json_stream.elements(path):
        folder, seeds = each if isinstance(each, list) and len(each) == 2 else (None, [None])
        yield from ((folder, seed) for seed in (seeds if isinstance(seeds, list) else [None]))


def _magicbrush(name: str, beside: bool) -> str:
    """Return where MagicBrush keeps `139306-output1.png`: in a folder 139306, which lies in `images`."""
    path = f"{name.partition('-')[0]}/{name}"
    return f"images/{path}" if beside else path
