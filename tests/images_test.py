import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from seed_jax import images
from seed_jax.errors import UserError
from tests.support import golden

GRADIENT = np.stack([*np.meshgrid(np.arange(40) * 6, np.arange(24) * 10), np.full((24, 40), 90)], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(GRADIENT)


# Exact: both sides are Pillow's resize on the same pixels.
@pytest.mark.parametrize(
    ("name", "size", "interpolation"),
    [("bicubic", 224, "bicubic"), ("bilinear", 224, "bilinear"), ("bicubic_down_56", 56, "bicubic")],
)
def test_squash_equals_the_original(name, size, interpolation):
    recorded = golden.tensors("preprocess/preprocess.safetensors")
    ours = images.resize(Image.fromarray(recorded["synthetic.input"]), size, interpolation)
    np.testing.assert_array_equal(ours, recorded[f"synthetic.{name}"])


@pytest.mark.parametrize("name", ["cat", "eagle"])
def test_normalisation_equals_the_original(name):
    recorded = golden.tensors("preprocess/preprocess.safetensors")
    ours = images.normalize(recorded[f"{name}.bicubic"]).transpose(2, 0, 1)
    corner = recorded[f"{name}.bicubic.normalized_f32_corner"]
    np.testing.assert_array_equal(ours[:, :16, :16], corner)  # the same three float32 operations in the same order
    info = golden.load_json("preprocess/info.json")["images"][name]
    assert zlib.crc32(np.ascontiguousarray(ours).tobytes()) == info["normalized_f32_crc32"]


def test_keep_ratio_crops_the_centre():
    """A picture twice as wide as high keeps its middle half; offsets follow Python's rounding to even."""
    wide = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None] * 10, 8, 0).repeat(3, 2)
    kept = images.resize(Image.fromarray(wide), 8, keep_ratio=True)
    np.testing.assert_array_equal(kept, wide[:, 4:12])
    tall = images.resize(Image.fromarray(wide[:, :11].transpose(1, 0, 2)), 8, keep_ratio=True)
    np.testing.assert_array_equal(tall, wide[:, 2:10].transpose(1, 0, 2))  # 1.5 rounds to 2


def test_preprocess_is_resize_and_normalise():
    ours = images.preprocess(rgb(), 28, "bicubic")
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, images.normalize(images.resize(rgb(), 28, "bicubic")))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_formats_give_the_pixels(kind, options):
    np.testing.assert_array_equal(np.asarray(images.load(encoded(rgb(), kind, **options))), GRADIENT)


@pytest.mark.parametrize("image", [rgb(), rgb().convert("CMYK"), rgb().convert("L")], ids=["rgb", "cmyk", "grey"])
def test_jpeg_of_any_mode_is_read(image):
    loaded = np.asarray(images.load(encoded(image, "JPEG", quality=95))).astype(int)
    assert np.abs(loaded - np.asarray(image.convert("RGB"))).mean() < 4  # lossy; an inverted picture is off by 100


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    loaded = np.asarray(images.load(encoded(rgb(), "PNG", exif=exif)))
    np.testing.assert_array_equal(loaded, np.rot90(GRADIENT, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "MPO", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_those_of_two_plain_copies(kind, orientation):
    """Reading without copies gives what a turned copy and a converted copy give, also when the file is closed."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind in ("BMP", "GIF") else {"exif": exif}
    data = encoded(rgb(), kind, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    loaded = images.load(data)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected))
    np.testing.assert_array_equal(images.resize(loaded, 7), images.resize(expected, 7))
    np.testing.assert_array_equal(np.asarray(images.load(encoded(loaded, "PNG"))), np.asarray(expected))


def test_transparency_is_laid_over_white():
    alpha = np.zeros((24, 40), np.uint8)
    alpha[:, 20:] = 255
    loaded = np.asarray(images.load(encoded(Image.fromarray(np.dstack([GRADIENT, alpha])), "PNG")))
    assert (loaded[:, :20] == 255).all()
    np.testing.assert_array_equal(loaded[:, 20:], GRADIENT[:, 20:])


def test_palette_with_and_without_a_transparent_colour():
    palette = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 2, 0), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    opaque = np.asarray(images.load(encoded(palette, "PNG")))
    assert opaque[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    clear = np.asarray(images.load(encoded(palette, "PNG", transparency=0)))
    assert clear[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    loaded = np.asarray(images.load(encoded(Image.fromarray(values), "PNG")))
    assert loaded[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(noise), "PNG")[:2000]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"<html>not found</html>", "not a picture"), (truncated_png(), "truncated")],
    ids=["empty", "html", "truncated"],
)
def test_bad_file_gives_one_sentence_with_its_path(tmp_path, data, reason):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=reason) as raised:
        images.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        images.load(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match="directory"):
        images.load(tmp_path)


def test_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 40 - 1)
    with pytest.raises(UserError, match=r"b\.png: 40 x 24 pixels"):
        images.load(encoded(rgb(), "PNG"), name="b.png")


def test_bomb_that_pillow_refuses_itself(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"Refusing to decode b\.png"):
        images.load(encoded(rgb(), "PNG"), name="b.png")


def test_unknown_interpolation():
    with pytest.raises(UserError, match=r"nearest.*bilinear, bicubic"):
        images.resize(rgb(), 8, "nearest")
