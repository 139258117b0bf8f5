"""Image preprocessing: decoding with Pillow, resizing as in the original, CLIP normalization (spec A.1).

Decoding equals the original's plain conversion to RGB for ordinary opaque 8-bit images, and handles more: the EXIF
orientation is applied, transparent images are composited over white, 16-bit grey is scaled down instead of clipped.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from seed_jax.errors import UserError

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jpe", ".jfif", ".avif", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
# A quarter GiB of pixels, where Pillow begins to warn of decompression bombs.
MAX_PIXELS = 1024**3 // 4 // 3


@runtime_checkable
class BinaryFile(Protocol):
    """Anything that `read` returns encoded bytes of."""

    def read(self, size: int = -1, /) -> bytes: ...


# An image as users give it: a path, encoded bytes, a binary file, a Pillow image, or an array (see `load`).
ImageInput = str | os.PathLike | bytes | bytearray | BinaryFile | Image.Image | np.ndarray

# What Pillow's decoders raise on malformed files of the various formats, and (the last) on images whose file is closed.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error, AssertionError,
)  # fmt: skip


def load(source: ImageInput, name: str | None = None) -> Image.Image:
    """Return an image as upright RGB.

    Args:
        source: a path; encoded bytes; a binary file; a Pillow image of any mode; or an array, uint8 [H, W], [H, W, 1],
            [H, W, 3] or [H, W, 4], or uint16 [H, W].
        name: name of the image in error messages, by default its path.

    Raises:
        UserError: the file is missing, empty, malformed, not an image, or larger than MAX_PIXELS; the array or the
            object is not an image.
    """
    name = name or _describe(source)
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(_upright_copy(_checked_size(source, name)))
        if isinstance(source, np.ndarray):
            return _to_rgb(_from_array(source, name))
        data = _read(source, name)
        if not data:
            raise UserError(f"Cannot read {name}: the file is empty; replace or remove it.")
        with Image.open(io.BytesIO(data)) as image:
            ImageOps.exif_transpose(_checked_size(image, name), in_place=True)
            return _to_rgb(image)
    except Image.DecompressionBombError:
        raise UserError(f"Refusing to decode {name}: more than {MAX_PIXELS:,} pixels; scale it down.") from None
    except Image.UnidentifiedImageError:
        raise UserError(
            f"Cannot read {name}: not an image in a format that Pillow supports; replace or remove it."
        ) from None
    except _DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"Cannot read {name}: {reason}; replace or remove it.") from error


def as_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """Return the images of a sequence or of an array [N, H, W, C]; a single image becomes a list of one."""
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim > 3 else [images]
    single = isinstance(images, str | bytes | bytearray | os.PathLike | Image.Image) or hasattr(images, "read")
    # What is no image at all is a list of one, too: `load` refuses it in a sentence.
    if single or not isinstance(images, Iterable):
        return [cast(ImageInput, images)]
    return list(cast(Iterable[ImageInput], images))


def _describe(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    kinds = {bytes: "bytes", bytearray: "bytes", Image.Image: "a Pillow image", np.ndarray: "an array"}
    found = next((text for kind, text in kinds.items() if isinstance(source, kind)), type(source).__name__)
    return str(getattr(source, "filename", None) or getattr(source, "name", None) or f"an image given as {found}")


def _read(source: Any, name: str) -> bytes:
    """Return the encoded bytes of a path, a file or bytes."""
    if isinstance(source, str | os.PathLike):
        return Path(source).read_bytes()
    data = source.read() if hasattr(source, "read") else source
    if not isinstance(data, bytes | bytearray):
        raise UserError(
            f"Cannot read {name}: found {type(data).__name__}, expected a path, encoded bytes, a file opened in binary "
            "mode, a Pillow image or a NumPy array."
        )
    return bytes(data)


def _checked_size(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"Refusing to decode {name}: {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down."
        )
    if not width or not height:
        raise UserError(f"Cannot use {name}: it has {width} x {height} pixels; replace or remove it.")
    return image


def _upright_copy(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation to a caller's image, which stays unchanged; without one it is returned as it is."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "RGB":
        image.load()  # before its file is closed; avoids the copy that `convert` would make
        return image
    return image.convert("RGB")


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
    if not keep_ratio:
        return np.asarray(image.resize((size, size), INTERPOLATIONS[interpolation]))
    width, height = image.size
    short = min(width, height)
    # The longer side is truncated and the offsets are rounded to even, as in torchvision.
    width, height = size * width // short, size * height // short
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), INTERPOLATIONS[interpolation])
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
