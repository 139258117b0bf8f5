"""Frames of videos, read with PyAV: the middle frame of each of N equal segments (spec D.5)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seed_jax.errors import UserError
from seed_jax.files import check_regular
from seed_jax.images import MAX_PIXELS

# Containers that hold their own streams. Playlists and other formats that name further files or addresses are refused.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,asf,ogg,gif,ivf,mxf,nut,rm,dv"


def frames(path: Path, count: int) -> list[Image.Image]:
    """Return `count` upright frames of a video as RGB images; a video with fewer frames repeats them.

    The original asks OpenCV for the frame before the middle one, by an off-by-one; here it is the middle one.

    Raises:
        UserError: PyAV is not installed, or the file is not a local regular file with a video that it can decode.
    """
    check_available()
    import av

    try:
        check_regular(Path(path))
        # The prefix keeps FFmpeg from taking a name such as "concat:a" for an address.
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        with av.open(f"file:{path}", options=options) as container:
            if not container.streams.video:
                raise UserError(f"Cannot read {path}: it has no video stream; replace or remove it.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its video stream has an unknown codec")
            if stream.width * stream.height > MAX_PIXELS:
                raise UserError(f"Refusing to decode {path}: {stream.width} x {stream.height} pixels; scale it down.")
            stream.thread_type = "NONE"  # many videos are decoded at once, one thread each
            return _middle_frames(container, stream, count)
    except UserError:
        raise
    except Exception as error:  # the decoders raise almost anything on malformed files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(str(reason).split())
        raise UserError(f"Cannot read {path}: {reason}; replace or remove it.") from error


def check_available() -> None:
    """Raise a UserError if PyAV is not installed, before any work is done."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError("Videos are read with PyAV, which is not installed: pip install 'seed-jax[video]'.") from None


def _middle_frames(container: Any, stream: Any, count: int) -> list[Image.Image]:
    """Decode the stream once, keeping the last frame that starts before the middle of each segment."""
    start, duration = _start_and_duration(container, stream)
    times = [start + duration * (2 * index + 1) / (2 * count) for index in range(count)]
    selected: list[Any] = []
    last = None
    for frame in _decoded(container, stream):
        while len(selected) < count and last is not None and frame.time > times[len(selected)]:
            selected.append(last)
        if len(selected) == count:
            break
        last = frame
    if last is None:
        raise ValueError("no frame can be decoded")
    selected += [last] * (count - len(selected))
    return [_upright(frame) for frame in selected]


def _upright(frame: Any) -> Image.Image:
    """Return a frame as displayed: turned and mirrored by the display matrix of its video."""
    from av.sidedata.sidedata import Type

    image = frame.to_image().convert("RGB")
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return image
    # A pixel at (x, y) is displayed at (a x + c y, b x + d y).
    a, b, _, c, d = (np.frombuffer(bytes(matrix), np.int32)[:5] / 2**16).round(2).tolist()
    if b == c == 0:
        mirrored, flipped = a < 0, d < 0
    elif a == d == 0:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        mirrored, flipped = c < 0, b < 0
    else:  # players turn by other angles into a larger frame; like OpenCV, leave it
        return image
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if flipped else image


def _start_and_duration(container: Any, stream: Any) -> tuple[float, float]:
    """Return start and duration in seconds; measured by decoding if the file does not store them."""
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        return start, float(stream.duration * stream.time_base)
    times = [frame.time for frame in _decoded(container, stream)]
    container.seek(0)
    if not times:
        raise ValueError("no frame can be decoded")
    return times[0], (times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    return (frame for frame in container.decode(stream) if frame.time is not None)
