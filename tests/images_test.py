"""Image decoding, resizing and normalization against the recorded original."""

import io
import os
import struct
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
def test_resize_equals_the_original(name, size, interpolation):
    recorded = golden.tensors("preprocess/preprocess.safetensors")
    ours = images.resize(Image.fromarray(recorded["synthetic.input"]), size, interpolation)
    np.testing.assert_array_equal(ours, recorded[f"synthetic.{name}"])


@pytest.mark.parametrize("name", ["cat", "eagle"])
def test_normalization_equals_the_original(name):
    recorded = golden.tensors("preprocess/preprocess.safetensors")
    ours = images.normalize(recorded[f"{name}.bicubic"]).transpose(2, 0, 1)
    corner = recorded[f"{name}.bicubic.normalized_f32_corner"]
    np.testing.assert_array_equal(ours[:, :16, :16], corner)  # the same three float32 operations in the same order
    info = golden.load_json("preprocess/info.json")["images"][name]
    assert zlib.crc32(np.ascontiguousarray(ours).tobytes()) == info["normalized_f32_crc32"]


def test_keep_ratio_crops_the_centre():
    """An image twice as wide as high keeps its middle half; offsets are rounded to even."""
    wide = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None] * 10, 8, 0).repeat(3, 2)
    kept = images.resize(Image.fromarray(wide), 8, keep_ratio=True)
    np.testing.assert_array_equal(kept, wide[:, 4:12])
    tall = images.resize(Image.fromarray(wide[:, :11].transpose(1, 0, 2)), 8, keep_ratio=True)
    np.testing.assert_array_equal(tall, wide[:, 2:10].transpose(1, 0, 2))  # 1.5 rounds to 2


def test_preprocess_is_resize_and_normalize():
    ours = images.preprocess(rgb(), 28, "bicubic")
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, images.normalize(images.resize(rgb(), 28, "bicubic")))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_formats_keep_the_pixels(kind, options):
    np.testing.assert_array_equal(np.asarray(images.load(encoded(rgb(), kind, **options))), GRADIENT)


@pytest.mark.parametrize("image", [rgb(), rgb().convert("CMYK"), rgb().convert("L")], ids=["rgb", "cmyk", "grey"])
def test_jpeg_of_any_mode_is_read(image):
    loaded = np.asarray(images.load(encoded(image, "JPEG", quality=95))).astype(int)
    assert np.abs(loaded - np.asarray(image.convert("RGB"))).mean() < 4  # lossy; an inverted image differs by 100


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed rotated by 90 degrees clockwise
    loaded = np.asarray(images.load(encoded(rgb(), "PNG", exif=exif)))
    np.testing.assert_array_equal(loaded, np.rot90(GRADIENT, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "MPO", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_decoding_in_place_equals_transposed_and_converted_copies(kind, orientation):
    """Decoding avoids copies; the result is the same, also after the file is closed."""
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


def test_transparency_is_composited_over_white():
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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 255, 256, 65535]], np.int32), [0, 0, 1, 255]),
        (np.array([[0, 0.25, 1]], np.float32), [0, 64, 255]),
        (np.array([[0, 100.4, 255]], np.float32), [0, 100, 255]),
        (np.array([[0, 32768, 65535]], np.float32), [0, 128, 255]),
    ],
    ids=["int32 of 8 bits", "int32 of 16 bits", "float to 1", "float to 255", "float to 65535"],
)
def test_grey_beyond_sixteen_bits_is_scaled_by_its_range(values, expected):
    loaded = np.asarray(images.load(encoded(Image.fromarray(values), "TIFF")))
    assert loaded[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536], [0, np.nan], [0, np.inf]])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_grey_of_unknown_range_is_refused(values, dtype):
    if dtype == np.int32 and not np.isfinite(values).all():
        values = [-(2**31), 2**31 - 1]
    with pytest.raises(UserError, match=r"a\.tif.*grey values from"):
        images.load(encoded(Image.fromarray(np.array([values], dtype)), "TIFF"), name="a.tif")


@pytest.mark.parametrize(
    ("bits", "photometric", "strip", "expected"),
    [
        (12, 1, bytes.fromhex("0007fffff000"), [0, 127, 255]),  # 0, 2047, 4095 and four bits of padding
        (16, 1, struct.pack("<3H", 0, 32767, 65535), [0, 127, 255]),
        (16, 0, struct.pack("<3H", 0, 32767, 65535), [255, 128, 0]),  # white is zero
    ],
)
def test_grey_of_a_tiff_is_scaled_by_the_declared_bits(bits, photometric, strip, expected):
    entries = [(256, 3), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1), (279, 6)]
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    data = b"II*\0" + struct.pack("<I", 14) + strip + struct.pack("<H", len(entries)) + directory + bytes(4)
    assert np.asarray(images.load(data))[0, :, 0].tolist() == expected


def test_large_images_are_converted_in_strips_with_the_same_result():
    """More rows than one strip, with transparency and in grey of 16 bits."""
    values = np.arange(1100 * 1000, dtype=np.uint32).reshape(1100, 1000)
    grey = (values % 65536).astype(np.uint16)
    loaded = np.asarray(images.load(encoded(Image.fromarray(grey), "TIFF")))
    np.testing.assert_array_equal(loaded[..., 0], grey >> 8)
    rgba = Image.fromarray(np.stack([values % 256, values % 7, values % 90, values % 251], -1).astype(np.uint8))
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    np.testing.assert_array_equal(np.asarray(images.load(encoded(rgba, "TIFF"))), np.asarray(expected))


def with_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return a JPEG whose EXIF block holds the orientation 6 and entries (tag, type, count, value of 4 bytes)."""
    entries = ((0x0112, 3, 1, struct.pack("<HH", 6, 0)), *entries)
    directory = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + struct.pack("<II", 7, 1)
    return encoded(rgb(), "JPEG", quality=95, exif=block)


@pytest.mark.parametrize(
    "entry",
    [
        (0x0131, 11, 1, struct.pack("<f", 1.5)),  # software as a float
        (0x0132, 5, 1, struct.pack("<I", 38)),  # date as a fraction
        (0x0128, 5, 1, struct.pack("<I", 38)),  # unit of the resolution as a fraction
        (0x0131, 99, 1, bytes(4)),  # a type that does not exist
        (0x0131, 2, 2**31, struct.pack("<I", 2**31)),  # a text beyond the end of the block
    ],
    ids=["float", "date", "unit", "type", "length"],
)
def test_malformed_exif_entries_do_not_hide_the_orientation(entry):
    loaded = np.asarray(images.load(with_exif(entry))).astype(int)
    assert np.abs(loaded - np.rot90(GRADIENT, -1)).mean() < 4  # lossy


def test_malformed_exif_block_is_ignored():
    data = encoded(rgb(), "JPEG", quality=95, exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 20)
    assert images.load(data).size == (40, 24)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_500_000))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * 1_500_000)),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_500_000))),
        chunk(b"tEXt", b"a\0" + b"b" * 1_500_000),
        chunk(b"zTXt", b"Raw profile type exif\0\0not compressed"),
    ],
    ids=["text", "xmp", "profile", "plain text", "damaged"],
)
def test_png_with_long_or_damaged_metadata_is_read(metadata):
    data = encoded(rgb(), "PNG")
    np.testing.assert_array_equal(np.asarray(images.load(data[:33] + metadata + data[33:])), GRADIENT)


@pytest.mark.parametrize("compressed", [False, True])
def test_png_text_with_the_orientation_is_kept(compressed):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    xmp = b"\1\0\0\0" + zlib.compress(xmp) if compressed else b"\0\0\0\0" + xmp
    data = encoded(rgb(), "PNG")
    loaded = images.load(data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0" + xmp) + data[33:])
    np.testing.assert_array_equal(np.asarray(loaded), np.rot90(GRADIENT, -1))


@pytest.mark.parametrize("kind", ["EPS", "PDF", "TGA", "DDS", "ICO"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(encoded(rgb(), kind))
    with pytest.raises(UserError, match=r"x\.png: not an image in a supported format"):
        images.load(tmp_path / "x.png")


@pytest.mark.parametrize("error", [RecursionError, OverflowError, struct.error, AssertionError, MemoryError])
def test_any_exception_of_a_decoder_is_an_unreadable_image(monkeypatch, error):
    def load(image):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(UserError, match=r"b\.png: unreadable image"):
        images.load(encoded(rgb(), "PNG"), name="b.png")


def test_only_regular_files_of_limited_size_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", "/dev/zero"):
        with pytest.raises(UserError, match="not a regular file"):
            images.load(path)
    rgb().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match=r"Refusing to read .*a\.png"):
        images.load(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 400_000), (400_000, 1)])
@pytest.mark.parametrize("keep_ratio", [False, True])
def test_resizing_extreme_sides_gives_the_colour_of_the_image(size, keep_ratio):
    """The intermediate image of a plain resize would take 360 MB, that of `keep_ratio` 80 GB."""
    pixels = images.resize(Image.new("RGB", size, (10, 20, 30)), 224, keep_ratio=keep_ratio)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == [10, 20, 30]).all()


def test_keep_ratio_of_extreme_sides_keeps_the_centre():
    """Within 1: Pillow rounds the positions of the two ways differently."""
    wide = np.random.default_rng(0).integers(0, 255, (4, 400, 3), np.uint8)
    scaled = Image.fromarray(wide).resize((1600, 16), Image.Resampling.BICUBIC).crop((792, 0, 808, 16))
    ours = images.resize(Image.fromarray(wide), 16, "bicubic", keep_ratio=True)
    assert np.abs(ours.astype(int) - np.asarray(scaled)).max() <= 1


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(noise), "PNG")[:2000]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"<html>not found</html>", "not an image"), (truncated_png(), "truncated")],
    ids=["empty", "html", "truncated"],
)
def test_malformed_file_is_reported_in_one_sentence_with_its_path(tmp_path, data, reason):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=reason) as raised:
        images.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        images.load(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match="directory"):
        images.load(tmp_path)


def test_decompression_bomb_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 40 - 1)
    with pytest.raises(UserError, match=r"b\.png: 40 x 24 pixels"):
        images.load(encoded(rgb(), "PNG"), name="b.png")


def test_decompression_bomb_that_pillow_refuses(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"Refusing to decode b\.png"):
        images.load(encoded(rgb(), "PNG"), name="b.png")


def test_unknown_interpolation_is_refused():
    with pytest.raises(UserError, match=r"nearest.*bilinear, bicubic"):
        images.resize(rgb(), 8, "nearest")


MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I", "I;16", "YCbCr", "HSV", "LAB")


@pytest.mark.parametrize("mode", MODES)
def test_pillow_images_of_any_mode_equal_their_file(mode):
    image = Image.fromarray(np.full((24, 40), 30000, np.uint16)) if mode == "I;16" else rgb().convert(mode)
    kind = "PNG" if mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16") else "TIFF"
    # No format stores HSV; Pillow 12.3 cannot read the TIFF that it writes of YCbCr.
    stored = image.convert("RGB") if mode in ("HSV", "YCbCr") else image
    expected = images.load(encoded(stored, kind))
    before = image.tobytes()
    loaded = images.load(image)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(images.load(loaded)), np.asarray(expected))  # twice changes nothing
    assert (image.mode, image.tobytes()) == (mode, before)


def test_pillow_images_are_turned_upright_and_stay_unchanged():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(rgb(), "PNG", exif=exif)))
    loaded = images.load(image)
    np.testing.assert_array_equal(np.asarray(loaded), np.rot90(GRADIENT, -1))
    np.testing.assert_array_equal(np.asarray(images.load(loaded)), np.rot90(GRADIENT, -1))
    np.testing.assert_array_equal(np.asarray(image), GRADIENT)


def test_arrays_files_and_bytes_are_images(tmp_path):
    data = encoded(rgb(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file:
        sources = [GRADIENT, data, bytearray(data), tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO(data), file]
        for source in sources:
            np.testing.assert_array_equal(np.asarray(images.load(source)), GRADIENT)
    grey = GRADIENT[..., 0]
    alpha = np.dstack([GRADIENT, np.zeros_like(grey)])
    for pixels in (grey, grey[..., None], grey.astype(np.uint16) * 256, np.asfortranarray(grey)):
        np.testing.assert_array_equal(np.asarray(images.load(pixels)), np.dstack([grey] * 3))
    assert (np.asarray(images.load(alpha)) == 255).all()  # transparent: white


@pytest.mark.parametrize(
    "pixels",
    [
        GRADIENT / np.float32(255),
        GRADIENT.transpose(2, 0, 1),
        GRADIENT.astype(np.int64),
        GRADIENT[..., :2],
        GRADIENT[:0],
        GRADIENT[None],
        np.array(3, np.uint8),
    ],
)
def test_arrays_that_are_no_image_are_refused(pixels):
    with pytest.raises(UserError, match=r"expected uint8 \[H, W\]"):
        images.load(pixels)


def test_text_files_and_empty_or_closed_images_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with (tmp_path / "a.txt").open() as file, pytest.raises(UserError, match=r"a\.txt: found str"):
        images.load(file)
    with pytest.raises(UserError, match="0 x 3 pixels"):
        images.load(Image.new("RGB", (0, 3)))
    rgb().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(UserError, match=r"a\.png"):
        images.load(image)


def test_one_image_is_a_list_of_one():
    data = encoded(rgb(), "PNG")
    for image in ("a.png", data, io.BytesIO(data), rgb(), GRADIENT, GRADIENT[..., 0]):
        (only,) = images.as_list(image)
        assert only is image
    assert images.as_list(("a.png", data)) == ["a.png", data]
    assert len(images.as_list(np.stack([GRADIENT] * 5))) == 5
    assert images.as_list([]) == []
