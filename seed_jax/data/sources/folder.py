"""A folder of images with a captions file: JSON lines such as `{"image": "a.jpg", "caption": "A dog."}`.

The captions file is `captions.jsonl`, `metadata.jsonl` or the only `.jsonl` file of the folder. Keys as in the source
`captions`; paths are relative to the captions file. Tasks: pretrain.image_text_pair, sft.qa.
"""

from collections.abc import Sequence
from pathlib import Path

from seed_jax.data.sources import json_stream
from seed_jax.data.sources.captions import CaptionsSource
from seed_jax.data.sources.samples import loose_files_hint
from seed_jax.errors import UserError

CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")


class FolderSource(CaptionsSource):
    """Read folders with a captions file, or captions files; one sample per non-blank line."""

    kind = "folder"

    def __init__(self, paths: Sequence[str | Path]):
        super().__init__(paths)
        for file in self.files:
            if next(json_stream.lines(file.path), None) is None:
                raise UserError(f"{file.path} has no captions: expected one line of JSON per image.")

    def find(self, paths: Sequence[str | Path]) -> list[Path]:
        return [_captions_file(Path(path)) for path in paths]


def _captions_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: expected a folder of images or its captions file.")
    if not any(path.glob("*.jsonl")) and (hint := loose_files_hint(path)):
        raise UserError(hint)
    candidates = [path / name for name in CAPTION_FILES if (path / name).is_file()] or sorted(path.glob("*.jsonl"))
    if len(candidates) != 1:
        names = f"has {', '.join(file.name for file in candidates)}" if candidates else "has no captions file"
        raise UserError(f"{path} {names}: put the captions into {CAPTION_FILES[0]}, or name the file itself.")
    return candidates[0]
