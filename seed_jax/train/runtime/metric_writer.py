"""Write metrics to JSON lines, TensorBoard event files and Weights & Biases.

The interface is that of `clu.metric_writers`, which itself imports TensorFlow.
"""

import html
import importlib
import importlib.util
import json
import logging
import math
import sys
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from seed_jax.errors import UserError
from seed_jax.files import AnyPath, write_text
from seed_jax.train.stage import ShownSample

METRICS = "metrics.jsonl"
_WRITE_SECONDS = 10  # between writes of files that are written as a whole: objects in buckets


class MetricWriter:
    """Write the metrics of process 0 to `metrics.jsonl` and `tensorboard/` in the workdir, and to Weights & Biases.

    Args:
        workdir: directory of the run.
        first_step: step that the run resumes from; rows of later steps are dropped, because they are written again.
        wandb_project: Weights & Biases project; "" for none.
        config: the run's configuration, for Weights & Biases.
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        first_step: int = 0,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = workdir / METRICS
        self._lines = _LocalLines(path, first_step) if isinstance(path, Path) else _BucketLines(path, first_step)
        self._board = _EventFile(str(workdir / "tensorboard"), first_step)
        self._wandb = _start_wandb(workdir, wandb_project, dict(config or {})) if wandb_project else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the metrics of a step; values that are not finite become null in `metrics.jsonl`."""
        if not self._active:
            return
        row = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.append(json.dumps({"step": step, **row}) + "\n")
        if self._wandb:
            self._wandb.log(dict(scalars), step=step)
        self._board.write(step, (self._board.scalar(name, value) for name, value in scalars.items()))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write texts to TensorBoard and to the log."""
        if self._active:
            self._board.write(step, (self._board.text(name, text) for name, text in texts.items()))
            for name, text in texts.items():
                logging.info("%s: %s", name, text)

    def write_samples(self, step: int, name: str, samples: Sequence[ShownSample]) -> None:
        """Write what an evaluation generated to TensorBoard and to Weights & Biases."""
        if not self._active:
            return
        logged: dict[str, Any] = {}
        for number, sample in enumerate(samples, 1):
            key = f"{name}/sample_{number}"
            shown_images = enumerate(sample.images, 1)
            images = (self._board.image(f"{key}/image_{index}", pixels) for index, pixels in shown_images)
            self._board.write(step, [self._board.text(key, sample.text), *images])
            if self._wandb:
                wandb = importlib.import_module("wandb")
                shown = [wandb.Image(pixels, caption=sample.text) for pixels in sample.images]
                logged[key] = shown or wandb.Html(f"<pre>{html.escape(sample.text)}</pre>")
        if self._wandb and logged:
            self._wandb.log(logged, step=step)

    def close(self) -> None:
        """Close all files."""
        if self._active:
            self._board.close()
            self._lines.close()
            if self._wandb:
                self._wandb.finish()


class _EventFile:
    """TensorBoard's event file, written by the calling thread.

    tensorboardX's `SummaryWriter` writes from a thread behind a queue: once that thread has failed, as on a full disk,
    the queue fills and the next metric waits for ever.

    Args:
        directory: of the event files.
        first_step: TensorBoard drops what earlier files hold from this step on; 0 keeps all.
    """

    def __init__(self, directory: str, first_step: int):
        self._tensorboard = _import_tensorboard()
        self._tensorboard.record_writer.directory_check(directory)
        self._writer = self._tensorboard.event_file_writer.EventsWriter(f"{directory}/events")
        self._written_at = 0.0
        if first_step:
            events = self._tensorboard.proto.event_pb2
            start = events.SessionLog(status=events.SessionLog.START)
            self._writer.write_event(events.Event(step=first_step, session_log=start, wall_time=time.time()))

    def write(self, step: int, summaries: Iterable[Any]) -> None:
        """Append the summaries of a step."""
        for summary in summaries:
            event = self._tensorboard.proto.event_pb2.Event(summary=summary, step=step, wall_time=time.time())
            self._writer.write_event(event)
        if time.monotonic() - self._written_at > _WRITE_SECONDS:
            self._writer.flush()
            self._written_at = time.monotonic()

    def scalar(self, name: str, value: float) -> Any:
        """Return the summary of a number."""
        return self._tensorboard.summary.scalar(name.replace("@", "_"), value)  # not allowed in TensorBoard

    def text(self, name: str, text: str) -> Any:
        """Return the summary of a text."""
        return self._tensorboard.summary.text(name, text)

    def image(self, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> Any:
        """Return the summary of an image."""
        return self._tensorboard.summary.image(name, pixels, dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _import_tensorboard() -> types.ModuleType:
    """Import tensorboardX without PyTorch, which it would load wherever it is installed: 2 s and 180 MiB."""
    hides_torch = "torch" not in sys.modules
    if hides_torch:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  makes `import torch` raise ImportError
    try:
        return importlib.import_module("tensorboardX")
    finally:
        if hides_torch:
            del sys.modules["torch"]


class _LocalLines:
    """Lines of a local file."""

    def __init__(self, path: Path, first_step: int):
        if path.exists():
            write_text(path, _rows_until(path.read_bytes(), first_step))
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _BucketLines:
    """Lines of an object in a bucket, which cannot be appended to: it is rewritten every ten seconds at most."""

    def __init__(self, path: epath.Path, first_step: int):
        self._path = path
        self._text = _rows_until(path.read_bytes(), first_step) if path.exists() else ""
        self._written_at = 0.0

    def append(self, line: str) -> None:
        self._text += line
        if time.monotonic() - self._written_at > _WRITE_SECONDS:
            self.close()

    def close(self) -> None:
        self._path.write_text(self._text)
        self._written_at = time.monotonic()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's `metrics.jsonl`, none where there is no such file."""
    path = workdir / METRICS
    return [row for _, row in _rows(path.read_bytes())] if path.is_file() else []


def _rows_until(content: bytes, first_step: int) -> str:
    """Drop rows that a killed run wrote after its last checkpoint."""
    return "".join(line + "\n" for line, row in _rows(content) if row["step"] <= first_step)


def _rows(content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line and what it holds; lines that a kill truncated or that are damaged are left out."""
    for line in content.decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield line, row


def check_wandb(project: str) -> None:
    """Raise UserError if Weights & Biases is asked for and not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb.project is set but wandb is not installed: pip install 'seed-jax[wandb]'.")


def _start_wandb(workdir: AnyPath, project: str, config: dict[str, Any]) -> Any:
    wandb = importlib.import_module("wandb")
    # The id is derived from the workdir, so that a restart continues the run.
    name = str(workdir).rstrip("/").replace("://", "-").replace("/", "-")[-64:].strip("-")
    return wandb.init(project=project, id=name, resume="allow", config=config)
