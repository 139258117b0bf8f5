"""Webdataset tars, such as img2dataset writes them: `000017.jpg`, `000017.txt`, `000017.json` side by side.

The caption is the `.txt`, or else `caption` of the `.json`, whose other keys become metadata. Tasks:
pretrain.image_text_pair, sft.qa.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.tar_groups import Group, groups, tars
from seed_jax.data.sources.units import Bad, InputFile, Raw, named, plain

PICTURES = ("jpg", "jpeg", "png", "webp")
_WANTED = (*PICTURES, "txt", "json")


class WebDatasetSource:
    """Read tars, or folders of tars; a work unit is a group of files with one key, or the place where a tar breaks."""

    kind = "webdataset"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = named([file for path in paths for file in tars(Path(path))])
        self.options: dict[str, Any] = {}

    def count(self, file: InputFile) -> int:
        return sum(1 for _ in groups(file.path, 0, 0, _WANTED))

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[Raw | Bad]:
        for group in itertools.islice(groups(file.path, start, stop, _WANTED), start, stop):
            yield _unit(f"{file.name}/{group.key}", group)


def _unit(name: str, group: Group) -> Raw | Bad:
    if group.problem is not None:
        return dataclasses.replace(group.problem, id=name)
    pictures = [extension for extension in PICTURES if extension in group.contents]
    if len(pictures) != 1:
        return Bad(name, "no picture" if not pictures else "several pictures", ", ".join(group.contents))
    try:
        meta = json.loads(group.contents.get("json", b"{}").decode("utf-8-sig"))
        text = group.contents["txt"].decode("utf-8-sig") if "txt" in group.contents else None
    except UnicodeDecodeError as error:
        return Bad(name, "text is not UTF-8", str(error))
    except (ValueError, RecursionError) as error:
        return Bad(name, "metadata is not JSON", str(error))
    if not isinstance(meta, dict):
        return Bad(name, "metadata is not a JSON object", f"a {type(meta).__name__}")
    text = meta.pop("caption", None) if text is None else text
    if not isinstance(text, str):
        return Bad(name, "no caption", "neither .txt nor `caption` in .json")
    meta.pop("caption", None)
    return Raw(name, (group.contents[pictures[0]], text.strip("\r\n")), plain(meta))
