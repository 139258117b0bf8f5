"""WebDataset tar files, such as img2dataset writes them: `000017.jpg`, `000017.txt`, `000017.json` side by side.

The files of a sample follow each other. The caption is the `.txt`, otherwise `caption` of the `.json`, whose other keys
become metadata. Extensions may have several parts (`1.input.jpg`, `1.output.txt`). Samples that img2dataset could not
download are counted apart from unusable ones. Tasks: pretrain.image_text_pair, sft.qa.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.data.sources.samples import InputFile, RawSample, SkippedSample, failed_download, name_files, to_storable
from seed_jax.data.sources.tar_groups import TarGroup, find_tars, groups
from seed_jax.errors import UserError
from seed_jax.files import parse_json
from seed_jax.images import EXTENSIONS

IMAGE = "image"
TEXT = "text"
METADATA = "metadata"
KINDS = {extension.removeprefix("."): IMAGE for extension in EXTENSIONS} | {"txt": TEXT, "json": METADATA}


class WebDatasetSource:
    """Read tar files, or folders of them; one sample per group of files with one key, or per damaged position."""

    kind = "webdataset"

    def __init__(self, paths: Sequence[str | Path]):
        self.files = name_files([file for path in paths for file in find_tars(Path(path))])
        self.options: dict[str, Any] = {}

    def count(self, file: InputFile) -> int:
        """Count the groups of a tar; UserError if the files of a sample do not follow each other."""
        incomplete: dict[str, set[str]] = {}
        count = 0
        for group in groups(file.path, 0, 0, KINDS):
            count += 1
            if IMAGE in group.kinds and group.kinds & {TEXT, METADATA}:
                continue
            other = incomplete.setdefault(group.key, group.kinds)
            if other is not group.kinds and not other & group.kinds:
                raise UserError(
                    f"{file.path}: the files of sample {group.key!r} do not follow each other; sort the tar by name, "
                    "for example by unpacking it and packing it again with `tar --sort=name`."
                )
        return count

    def read(self, file: InputFile, start: int, stop: int) -> Iterator[RawSample | SkippedSample]:
        for group in itertools.islice(groups(file.path, start, stop, KINDS), start, stop):
            yield _sample(f"{file.name}/{group.key}", group)


def _sample(name: str, group: TarGroup) -> RawSample | SkippedSample:
    if group.problem is not None:
        return dataclasses.replace(group.problem, id=name)
    images = [extension for extension in group.contents if KINDS[extension] == IMAGE]
    if len(images) > 1:
        return SkippedSample(name, "several images", ", ".join(group.extensions))
    try:
        meta = parse_json(group.contents.get("json", b"{}").decode("utf-8-sig"))
        text = group.contents["txt"].decode("utf-8-sig") if "txt" in group.contents else None
    except UnicodeDecodeError as error:
        return SkippedSample(name, "text is not UTF-8", str(error))
    except ValueError as error:
        return SkippedSample(name, "metadata is not JSON", str(error))
    if not isinstance(meta, dict):
        return SkippedSample(name, "metadata is not a JSON object", f"a {type(meta).__name__}")
    if not images:
        return failed_download(name, meta) or SkippedSample(name, "no image", f"files: {', '.join(group.extensions)}")
    text = meta.pop("caption", None) if text is None else text
    if not isinstance(text, str):
        return SkippedSample(name, "no caption", "neither .txt nor `caption` in .json")
    meta.pop("caption", None)
    return RawSample(name, (group.contents[images[0]], text.strip("\r\n")), to_storable(meta))
