"""Frames of videos, read with PyAV: the middle frame of each of N equal segments (spec D.5)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from seed_jax.errors import UserError
from seed_jax.images import MAX_PIXELS

_MISSING_EXTRA = "Videos are read with PyAV, which is not installed: pip install 'seed-jax[video]'."


def frames(path: Path, count: int) -> list[Image.Image]:
    """Return `count` frames of a video as RGB images; a video with fewer frames repeats them.

    The original asks OpenCV for the frame before the middle one, by an off-by-one; here it is the middle one.

    Raises:
        UserError: PyAV is not installed, or the file is not a video that it can decode.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise UserError(_MISSING_EXTRA) from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"Cannot read {path}: it has no video stream; replace or remove it.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its video stream has an unknown codec")
            if stream.width * stream.height > MAX_PIXELS:
                raise UserError(f"Refusing to decode {path}: {stream.width} x {stream.height} pixels; scale it down.")
            stream.thread_type = "NONE"  # many videos are decoded at once, one thread each
            return _middle_frames(container, stream, count)
    except (FFmpegError, EOFError, ValueError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Cannot read {path}: {reason}; replace or remove it.") from error


def check_available() -> None:
    """Raise a UserError if PyAV is not installed, before any work is done."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError(_MISSING_EXTRA) from None


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
    return [frame.to_image().convert("RGB") for frame in selected]


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
