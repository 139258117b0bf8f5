"""Frames of videos, read with PyAV: each from the middle of one of so many equal stretches (spec D.5)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from seed_jax.errors import UserError
from seed_jax.images import MAX_PIXELS

_EXTRA = "Videos are read with PyAV, which is not installed: pip install 'seed-jax[video]'."


def frames(path: Path, count: int) -> list[Image.Image]:
    """Return `count` pictures of a video; UserError for a file that is none. A short video repeats its frames.

    The original asks OpenCV for the frame before the middle one, by an off-by-one; here it is the middle one.
    """
    try:
        import av
    except ImportError:
        raise UserError(_EXTRA) from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"Cannot read {path}: it has no pictures; replace or remove it.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its pictures are in an unknown format")
            if stream.width * stream.height > MAX_PIXELS:
                raise UserError(f"Refusing to decode {path}: {stream.width} x {stream.height} pixels; scale it down.")
            stream.thread_type = "NONE"  # many videos are decoded at once, in as many threads
            return _middle_frames(container, stream, count)
    except (av.FFmpegError, EOFError, ValueError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Cannot read {path}: {reason}; replace or remove it.") from error


def check_available() -> None:
    """Raise a UserError where PyAV is not installed, before any work is done."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError(_EXTRA) from None


def _middle_frames(container: Any, stream: Any, count: int) -> list[Image.Image]:
    """Decode once, keeping the last frame that begins before each wanted time."""
    begin, length = _times(container, stream)
    wanted = [begin + length * (2 * index + 1) / (2 * count) for index in range(count)]
    found: list[Any] = []
    last = None
    for frame in _decoded(container, stream):
        while len(found) < count and last is not None and frame.time > wanted[len(found)]:
            found.append(last)
        if len(found) == count:
            break
        last = frame
    if last is None:
        raise ValueError("no frame can be decoded")
    found += [last] * (count - len(found))
    return [frame.to_image().convert("RGB") for frame in found]


def _times(container: Any, stream: Any) -> tuple[float, float]:
    """Return begin and length in seconds; where the file does not say, they are counted."""
    begin = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        return begin, float(stream.duration * stream.time_base)
    times = [frame.time for frame in _decoded(container, stream)]
    container.seek(0)
    if not times:
        raise ValueError("no frame can be decoded")
    return times[0], (times[-1] - times[0]) * len(times) / max(len(times) - 1, 1)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    return (frame for frame in container.decode(stream) if frame.time is not None)
