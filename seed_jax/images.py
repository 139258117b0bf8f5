"""Image preprocessing: decoding with Pillow, resizing as in the original, CLIP normalization (spec A.1).

Decoding equals the original's plain conversion to RGB for ordinary opaque 8-bit images, and handles more: the EXIF
orientation is applied, transparent images are composited over white, grey of more than 8 bits is scaled (docs/data.md).
"""

import functools
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from seed_jax.errors import UserError
from seed_jax.files import check_size, read_bytes

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jpe", ".jfif", ".avif", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
# The only formats that are tried: others start programs (EPS) or have decoders that few people test.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
MAX_FILE_BYTES = 256 * 1024**2
_SCALE = "scale it down"
# Decoding may take 1 GiB. Pillow stores 4 bytes per pixel; a second copy and the decoder's own buffers make 12. The
# limit of 89,478,485 pixels is also where Pillow begins to warn of decompression bombs.
MAX_DECODE_BYTES = 1024**3
MAX_PIXELS = MAX_DECODE_BYTES // 12
_DECODER_FACTOR = {"WEBP": 2, "AVIF": 2, "JPEG2000": 3}  # their decoders hold the whole image several times

_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_STRIP_PIXELS = 1024**2  # images are converted in strips, so that intermediate copies stay small
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_ORIENTATION_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_PNG_MAX_TEXT = 1024**2  # of a text after decompression; Pillow refuses images with longer ones
_RESIZE_BYTES = 256 * 1024**2  # of the intermediate image of a resize
_MAX_SIDE = 2**20  # in pixels, up to which images are resized as a whole
_MAX_EXACT_RATIO = 64  # of the sides, up to which `keep_ratio` resizes the whole image


@runtime_checkable
class BinaryFile(Protocol):
    """Anything that `read` returns encoded bytes of."""

    def read(self, size: int = -1, /) -> bytes: ...


# An image as users give it: a path, encoded bytes, a binary file, a Pillow image, or an array (see `load`).
ImageInput = str | os.PathLike | bytes | bytearray | BinaryFile | Image.Image | np.ndarray


def load(source: ImageInput, name: str | None = None) -> Image.Image:
    """Return an image as upright RGB.

    Args:
        source: a path; encoded bytes; a binary file; a Pillow image of any mode; or an array, uint8 [H, W], [H, W, 1],
            [H, W, 3] or [H, W, 4], or uint16 [H, W].
        name: name of the image in error messages, by default its path.

    Raises:
        UserError: the file is missing, empty, malformed, not a regular file, larger than MAX_FILE_BYTES, not in one of
            FORMATS, of more than MAX_PIXELS pixels (fewer in formats whose decoders take more memory), or grey with an
            unknown range of values; the object is not an image.
    """
    name = name or _describe(source)
    try:
        if isinstance(source, np.ndarray):
            source = _from_array(source, name)
        if isinstance(source, Image.Image):
            return _upright_rgb(source, name)
        data = _read(source, name)
        if not data:
            raise UserError(f"Cannot read {name}: the file is empty; replace or remove it.")
        check_size(len(data), MAX_FILE_BYTES, name, _SCALE)
        with Image.open(io.BytesIO(_without_png_metadata(data)), formats=_supported_formats()) as image:
            return _upright_rgb(image, name)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(f"Refusing to decode {name}: more than {MAX_PIXELS:,} pixels; scale it down.") from None
    except Image.UnidentifiedImageError:
        raise UserError(
            f"Cannot read {name}: not an image in a supported format ({', '.join(FORMATS)}); replace or remove it."
        ) from None
    except Exception as error:  # the decoders raise almost anything on malformed files
        reason = getattr(error, "strerror", None) or f"unreadable image, {str(error) or type(error).__name__}"
        raise UserError(f"Cannot read {name}: {' '.join(reason.split())}; replace or remove it.") from error


def read_size(data: bytes, formats: Sequence[str] = FORMATS) -> tuple[int, int]:
    """Return width and height of an encoded image, which is not decoded.

    Args:
        data: encoded bytes.
        formats: those of FORMATS that are accepted.

    Raises:
        UserError: the bytes are no image in one of the formats.
    """
    accepted = [name for name in _supported_formats() if name in formats]
    try:
        with Image.open(io.BytesIO(_without_png_metadata(data)), formats=accepted) as image:
            return image.size
    except Exception as error:  # the decoders raise almost anything on malformed files
        raise UserError(f"Not an image in one of the formats {', '.join(accepted)}.") from error


def as_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """Return the images of a sequence or of an array [N, H, W, C]; a single image becomes a list of one."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim > 3 else [images]
    single = isinstance(images, str | os.PathLike | bytes | bytearray | BinaryFile | Image.Image)
    # What is no image at all is a list of one, too: `load` refuses it in a sentence.
    if single or not isinstance(images, Iterable):
        return [cast(ImageInput, images)]
    return list(cast(Iterable[ImageInput], images))


def _describe(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    descriptions = {bytes: "bytes", bytearray: "bytes", Image.Image: "a Pillow image", np.ndarray: "an array"}
    matching = (text for kind, text in descriptions.items() if isinstance(source, kind))
    description = f"an image given as {next(matching, type(source).__name__)}"
    return str(getattr(source, "filename", None) or getattr(source, "name", None) or description)


def _read(source: Any, name: str) -> bytes:
    """Return the encoded bytes of a path, a file or bytes."""
    if isinstance(source, str | os.PathLike):
        return read_file(Path(source), name)
    data = source.read(MAX_FILE_BYTES + 1) if isinstance(source, BinaryFile) else source
    if not isinstance(data, bytes | bytearray):
        raise UserError(
            f"Cannot read {name}: found {type(data).__name__}, expected a path, encoded bytes, a file opened in binary "
            "mode, a Pillow image or a NumPy array."
        )
    return bytes(data)


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decode and convert an image, and apply its EXIF orientation; a caller's image stays unchanged."""
    width, height = image.size
    limit = MAX_PIXELS // _DECODER_FACTOR.get(image.format or "", 1)
    if width * height > limit:
        raise UserError(f"Refusing to decode {name}: {width} x {height} pixels, more than {limit:,}; scale it down.")
    if not width or not height:
        raise UserError(f"Cannot use {name}: it has {width} x {height} pixels; replace or remove it.")
    image.load()
    orientation = _orientation(image)
    rgb = _to_rgb(image, name)
    if orientation in _TRANSPOSITIONS:
        rgb = rgb.transpose(_TRANSPOSITIONS[orientation])
        rgb.info.clear()  # holds the orientation that has been applied
    return rgb


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    is_color = grey.ndim == 3 and grey.shape[-1] in (3, 4) and grey.dtype == np.uint8
    is_grey = grey.ndim == 2 and grey.dtype in (np.uint8, np.uint16)
    if not (is_color or is_grey) or not grey.size:
        raise UserError(
            f"Cannot use {name}: {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W], [H, W, 3] or [H, W, 4], "
            "or uint16 [H, W]; scale and transpose it."
        )
    return Image.fromarray(np.ascontiguousarray(grey))


def read_file(path: Path, name: str | None = None) -> bytes:
    """Return the content of the file of an image.

    Args:
        path: a regular file of at most MAX_FILE_BYTES.
        name: name of the image in error messages, by default its path.

    Raises:
        UserError: the file is larger, or a directory, FIFO or device.
        OSError: it cannot be read.
    """
    return read_bytes(path, MAX_FILE_BYTES, name, _SCALE)


@functools.cache
def _supported_formats() -> tuple[str, ...]:
    """Return those of FORMATS that this version of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _without_png_metadata(data: bytes) -> bytes:
    """Remove profiles and texts from a PNG, except the texts that may hold its orientation."""
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, begin = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while begin + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, begin)
        end = begin + 12 + length
        if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt") or _holds_orientation(kind, data[begin + 8 : end - 4]):
            kept.append(data[begin:end])
        begin = end
    return b"".join(kept)


def _holds_orientation(kind: bytes, content: bytes) -> bool:
    keyword, _, rest = content.partition(b"\0")
    if kind == b"iCCP" or keyword not in _PNG_ORIENTATION_KEYWORDS or len(content) > _PNG_MAX_TEXT:
        return False
    if kind == b"iTXt" and rest[:1] == b"\1":
        rest = rest[2:].split(b"\0", 2)[-1]  # after the flags, the language and the translated keyword
    elif kind == b"zTXt":
        rest = rest[1:]
    else:
        return True
    try:
        return len(zlib.decompressobj().decompress(rest, _PNG_MAX_TEXT)) < _PNG_MAX_TEXT
    except zlib.error:
        return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or the EXIF block is malformed."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a malformed block makes Pillow raise almost anything, and the pixels are sound
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _in_strips(image, _grey_scaling(image, name))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _in_strips(image, _over_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the image of each strip."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _grey_scaling(image: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """Return the conversion of grey of more than 8 bits: by the declared bits, else by the range of the values."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    white_is_zero = tags.get(_TIFF_PHOTOMETRIC) == 0
    if image.mode.startswith("I;16") or image.format not in ("TIFF", None):  # PNG, PPM and JPEG 2000 come as 16 bits
        declared = tags.get(_TIFF_BITS, (16,))
        bits = declared[0] if isinstance(declared, tuple) else declared
        scale = 2.0 ** (8 - bits)
    else:
        low, high = _value_range(image)
        if not (low >= 0 and high <= 65535):  # written so that NaN is refused
            raise UserError(
                f"Cannot read {name}: grey values from {low:g} to {high:g}, expected 0 to 1 (floats), 255 or 65535; "
                "convert it to 8 bits."
            )
        unit = image.mode == "F" and high <= 1
        scale = 255.0 if unit else 1.0 if high <= 255 else 1 / 256
    rounding = 0.5 if image.mode == "F" else 0.0  # integers are shifted, floats rounded

    def convert(strip: Image.Image) -> Image.Image:
        grey = (np.asarray(strip).astype(np.float64) * scale + rounding).clip(0, 255).astype(np.uint8)
        return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")

    return convert


def _value_range(image: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest value, NaN if one is not a number."""
    ranges = [(array.min(), array.max()) for array in (np.asarray(strip) for _, strip in _strips(image))]
    return float(np.min([low for low, _ in ranges])), float(np.max([high for _, high in ranges]))


def resize(
    image: Image.Image, size: int, interpolation: str = "bilinear", keep_ratio: bool = False
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resize (antialiased) to a square.

    Args:
        image: an RGB image.
        size: side of the result in pixels.
        interpolation: "bilinear", as in the original's training data and scripts, or "bicubic", as in its
            `ImageTokenizer`.
        keep_ratio: resize the shorter side to `size` and crop the centre (the original's VQA evaluation) instead of
            changing the aspect ratio.

    Raises:
        UserError: `interpolation` is unknown.
    """
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"Unknown interpolation {interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}.")
    method = INTERPOLATIONS[interpolation]
    if max(image.size) > _MAX_SIDE:  # Pillow's coefficients take 32 bytes per pixel; the result differs by rounding
        image = image.reduce((-(-image.width // _MAX_SIDE), -(-image.height // _MAX_SIDE)))
    width, height = image.size
    if not keep_ratio:
        if 4 * size * height > _RESIZE_BYTES:  # Pillow would resize the rows first; the result differs by rounding
            image = image.resize((width, size), method)
        return np.asarray(image.resize((size, size), method))
    short = min(width, height)
    if max(width, height) > _MAX_EXACT_RATIO * short:  # crop before resizing; the result differs by rounding
        left, top = (width - short) / 2, (height - short) / 2
        return np.asarray(image.resize((size, size), method, box=(left, top, left + short, top + short)))
    # The longer side is truncated and the offsets are rounded to even, as in torchvision.
    width, height = size * width // short, size * height // short
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), method)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def normalize(pixels):
    """Normalize pixels [..., 3] in 0..255 as CLIP's encoders expect; takes and returns NumPy or JAX arrays."""
    shape = (1,) * (pixels.ndim - 1) + (3,)
    return (pixels.astype(np.float32) / np.float32(255) - MEAN.reshape(shape)) / STD.reshape(shape)


def preprocess(
    image: Image.Image, size: int, interpolation: str = "bilinear", keep_ratio: bool = False
) -> Float[np.ndarray, "{size} {size} 3"]:
    """Resize and normalize an image; arguments as in `resize`."""
    return normalize(resize(image, size, interpolation, keep_ratio))
