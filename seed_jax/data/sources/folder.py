"""A folder of pictures with a captions file: JSON lines such as `{"image": "a.jpg", "caption": "A dog."}`.

`path` and `file_name` may stand for `image`; `caption` may be a list; any other key is kept as metadata. Paths are
relative to the captions file.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.units import Bad, InputFile, Raw, named, plain
from seed_jax.errors import UserError

CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
IMAGE_KEYS, CAPTION_KEYS = ("image", "path", "file_name"), ("caption", "captions", "text")


class FolderSource:
    """Read folders with a captions file, or captions files; a work unit is a line that is not blank."""

    kind = "folder"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = named([_captions_file(Path(path)) for path in paths])
        for file in self.files:
            if next(_lines(file.path), None) is None:
                raise UserError(f"{file.path} has no captions: expected a line of JSON for every picture.")

    def count(self, file: InputFile) -> int:
        return sum(1 for _ in _lines(file.path))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        for number, line in itertools.islice(_lines(file.path), start, stop):
            yield _unit(f"{file.name}:{number}", line, file.path.parent)


def _captions_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: expected a folder of pictures or its captions file.")
    found = [path / name for name in CAPTION_FILES if (path / name).is_file()] or sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = f"has {', '.join(file.name for file in found)}" if found else "has no captions file"
        raise UserError(f"{path} {names}: put the captions into {CAPTION_FILES[0]}, or name the file itself.")
    return found[0]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _unit(name: str, line: bytes, folder: Path) -> Raw | Bad:
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Bad(name, "text is not UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        return Bad(name, "line is not JSON", str(error))
    if not isinstance(content, dict):
        return Bad(name, "line is not a JSON object", f"a {type(content).__name__}")
    image, captions = _first(content, IMAGE_KEYS), _first(content, CAPTION_KEYS)
    if not isinstance(image, str) or not image or "\0" in image:
        return Bad(name, "no picture named", f"expected one of {', '.join(IMAGE_KEYS)}")
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        return Bad(name, "no caption", f"expected one of {', '.join(CAPTION_KEYS)}: text or a list of texts")
    meta = {key: plain(value) for key, value in content.items() if key not in CAPTION_KEYS}
    return Raw(name, (folder / image, *captions), meta)


def _first(content: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((content[key] for key in keys if key in content), None)
