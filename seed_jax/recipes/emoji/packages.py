"""Read the emoji images of several studios from the npm packages `emoji-datasource-STUDIO`.

A package holds `emoji.json`, a list of symbols with names and categories, and `img/STUDIO/64/FILE.png`. All packages
have the same list, whichever studio's images they hold.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax import images
from seed_jax.errors import UserError
from seed_jax.files import MAX_TEXT_BYTES, parse_json, read_bytes

SYMBOLS, FLAGS, SKIN_TONES = "symbols", "flags", "skin_tones"
GROUPS = (SYMBOLS, FLAGS, SKIN_TONES)
SIDE = 64  # pixels of the images, and name of their folder
LIST = "emoji.json"
MIN_SYMBOLS = 5  # of the group SYMBOLS, below which nothing can be measured
_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
_REMEDY = "unpack it again with `npm pack` and `tar`, see benchmarks/emoji.md"


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A symbol that every studio has drawn.

    Attributes:
        name: unique, in lower case.
        captions: the name, and shorter ones.
        category: such as "Food & Drink".
        group: one of `GROUPS`.
        file: name of its image.
    """

    name: str
    captions: tuple[str, ...]
    category: str
    group: str
    file: str


@dataclasses.dataclass(frozen=True)
class EmojiSet:
    """Symbols, and the folders of their images.

    Attributes:
        symbols: those that all studios have drawn.
        folders: studio -> folder of its images.
    """

    symbols: tuple[Symbol, ...]
    folders: dict[str, Path]

    def of_group(self, group: str) -> list[Symbol]:
        """Return the symbols of a group."""
        return [symbol for symbol in self.symbols if symbol.group == group]

    def image(self, studio: str, symbol: Symbol) -> Path:
        """Return the image of a symbol."""
        return self.folders[studio] / symbol.file

    @functools.cached_property
    def category_of(self) -> dict[str, str]:
        """Name -> category."""
        return {symbol.name: symbol.category for symbol in self.symbols}


def read_packages(directory: Path, studios: Sequence[str]) -> EmojiSet:
    """Read the symbols that all of some studios have drawn.

    Args:
        directory: the folder that holds the unpacked packages, one for each studio.
        studios: which.

    Raises:
        UserError: a studio or its names are missing, an image is missing or has another size, or there are too few
            symbols.
    """
    if not directory.is_dir():
        raise UserError(f"packages.directory {directory} is not a folder: expected that of the unpacked npm packages.")
    packages = _find_packages(directory)
    if missing := [studio for studio in studios if studio not in packages]:
        raise UserError(
            f"{directory} holds no images of {', '.join(missing)}, only of {', '.join(packages) or 'no studio'}: get "
            f"them with `npm pack emoji-datasource-{missing[0]}@16.0.0` and unpack them there."
        )
    entries = list(_read_list(packages[studios[0]] / LIST))
    folders = {studio: packages[studio] / "img" / studio / str(SIDE) for studio in studios}
    common: dict[str, Symbol] = {}
    for symbol, drawn_by in entries:
        if drawn_by.issuperset(studios):
            common.setdefault(symbol.name, symbol)  # one name occurs twice
    read = EmojiSet(tuple(common.values()), folders)
    if len(read.of_group(SYMBOLS)) < MIN_SYMBOLS:
        raise UserError(
            f"{directory} has too few images: {len(read.of_group(SYMBOLS))} symbols beside flags and skin tones that "
            f"all of {', '.join(studios)} have drawn, expected at least {MIN_SYMBOLS}; {_REMEDY}."
        )
    for studio in studios:
        for symbol in read.symbols:
            _check_image(read.image(studio, symbol))
    return read


def _find_packages(directory: Path) -> dict[str, Path]:
    """Return studio -> package for every folder with images of a studio."""
    packages = {}
    for folder in sorted((directory, *(path for path in directory.iterdir() if path.is_dir()))):
        for sizes in sorted(folder.glob(f"img/*/{SIDE}")):
            packages[sizes.parent.name] = folder
            if not (folder / LIST).is_file():
                raise UserError(f"{folder} has images but no {LIST} with their names: {_REMEDY}.")
    return packages


def _read_list(path: Path) -> Iterator[tuple[Symbol, set[str]]]:
    """Yield the symbols of a list, variations of skin tone included, and the studios that have drawn them."""
    try:
        entries = parse_json(read_bytes(path, MAX_TEXT_BYTES))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {_REMEDY}.") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a list of symbols: {_REMEDY}.")
    for number, entry in enumerate(entries):
        try:
            yield from _symbols(entry)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"Entry {number} of {path} lacks its name, category or image ({error}): {_REMEDY}."
            ) from None


def _symbols(entry: dict[str, Any]) -> Iterator[tuple[Symbol, set[str]]]:
    name, category = " ".join(entry["name"].lower().split()), str(entry["category"])
    if not name:
        raise ValueError("an empty name")
    shorter = (short.replace("_", " ").replace("-", " ") for short in entry["short_names"])
    group = {"Flags": FLAGS, "Component": SKIN_TONES}.get(category, SYMBOLS)
    captions = tuple(dict.fromkeys((name, *shorter)))
    yield Symbol(name, captions, category, group, _file(entry)), _studios(entry)
    for tones, variation in entry.get("skin_variations", {}).items():
        tone_names = " and ".join(_TONES[tone] for tone in tones.split("-"))
        full = f"{name}, {tone_names} skin tone"
        yield Symbol(full, (full,), category, SKIN_TONES, _file(variation)), _studios(variation)


def _file(entry: dict[str, Any]) -> str:
    """Return the name of an image, which must not lead out of its folder."""
    file = entry["image"]
    if Path(file).name != file:
        raise ValueError(f"image {file!r}")
    return file


def _studios(entry: dict[str, Any]) -> set[str]:
    prefix = "has_img_"
    return {key.removeprefix(prefix) for key, value in entry.items() if key.startswith(prefix) and value is True}


def _check_image(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing, although {LIST} lists it: {_REMEDY}.")
    try:
        size = images.read_size(images.read_file(path))
    except UserError as error:
        raise UserError(f"{path} is no image: {_REMEDY}.") from error
    if size != (SIDE, SIDE):
        raise UserError(f"{path} has {size[0]} x {size[1]} pixels, expected {SIDE} x {SIDE}: {_REMEDY}.")
