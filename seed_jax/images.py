"""Image preprocessing: decoding with Pillow, resizing as in the original, CLIP normalization (spec A.1).

Decoding equals the original's plain conversion to RGB for ordinary opaque 8-bit images, and handles more: the EXIF
orientation is applied, transparent images are composited over white, 16-bit grey is scaled down instead of clipped.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from seed_jax.errors import UserError

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jpe", ".jfif", ".avif", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
# A quarter GiB of pixels, where Pillow begins to warn of decompression bombs.
MAX_PIXELS = 1024**3 // 4 // 3

# What Pillow's decoders raise on malformed files of the various formats.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)


def load(source: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """Read an image as upright RGB.

    Args:
        source: a path, or the encoded bytes.
        name: name of the image in error messages, by default its path.

    Raises:
        UserError: the file is missing, empty, malformed, not an image, or larger than MAX_PIXELS.
    """
    name = name or ("an image given as bytes" if isinstance(source, bytes) else str(source))
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data:
            raise UserError(f"Cannot read {name}: the file is empty; replace or remove it.")
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"Refusing to decode {name}: {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down."
                )
            ImageOps.exif_transpose(image, in_place=True)
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
