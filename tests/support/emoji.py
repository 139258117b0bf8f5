"""Emoji that the tests draw themselves, in the layout of the npm packages `emoji-datasource-STUDIO`."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

STUDIOS = ("apple", "facebook", "google", "twitter")
# (name, category, shape, colour); two of them also in a skin tone, so that each studio draws ten images.
SYMBOLS = (
    ("RED APPLE", "Food & Drink", "ellipse", "red"),
    ("GREEN PEAR", "Food & Drink", "ellipse", "green"),
    ("BLUE BOOK", "Objects", "rectangle", "blue"),
    ("YELLOW BOX", "Objects", "rectangle", "gold"),
    ("WAVING HAND SIGN", "People & Body", "hand", "orange"),
    ("RAISED HAND", "People & Body", "hand", "tan"),
    ("SMILING FACE", "Smileys & Emotion", "ellipse", "yellow"),
    ("Atlantis Flag", "Flags", "rectangle", "navy"),
)
_TONE = ("1F3FB", "peachpuff")


def write_packages(directory: Path) -> Path:
    """Draw 40 images by four studios into `directory`, one folder for each studio."""
    for number, studio in enumerate(STUDIOS):
        folder = directory / f"emoji-datasource-{studio}"
        images = folder / "img" / studio / "64"
        images.mkdir(parents=True)
        entries = []
        for index, (name, category, shape, colour) in enumerate(SYMBOLS):
            file = f"1f{index:03x}.png"
            _draw(shape, colour, number).save(images / file)
            entry = {
                "name": name,
                "short_names": [name.lower().replace(" ", "_"), f"short-{index}"],
                "category": category,
                **_image(file),
            }
            if shape == "hand":
                toned = f"1f{index:03x}-{_TONE[0].lower()}.png"
                _draw(shape, _TONE[1], number).save(images / toned)
                entry["skin_variations"] = {_TONE[0]: _image(toned)}
            entries.append(entry)
        (folder / "emoji.json").write_text(json.dumps(entries))
    return directory


def _image(file: str) -> dict:
    return {"image": file, **{f"has_img_{studio}": True for studio in STUDIOS}}


def _draw(shape: str, colour: str, studio: int) -> Image.Image:
    """Draw a shape in a studio's style: its size and outline differ."""
    image = Image.new("RGBA", (64, 64))
    draw, margin = ImageDraw.Draw(image), 6 + 3 * studio
    box = (margin, margin, 63 - margin, 63 - margin)
    outline = "black" if studio % 2 else None
    if shape == "ellipse":
        draw.ellipse(box, fill=colour, outline=outline)
    elif shape == "rectangle":
        draw.rectangle(box, fill=colour, outline=outline)
    else:
        draw.polygon([(margin, 60), (32, margin), (63 - margin, 60)], fill=colour, outline=outline)
    return image
