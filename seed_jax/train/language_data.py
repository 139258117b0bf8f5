"""What a language stage trains on: packed batches of shards, or the embedded data of the :tiny variants."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

from seed_jax.data.packing import empty_batch
from seed_jax.data.parts import make_parts
from seed_jax.data.pipeline import packed_batches
from seed_jax.data.vocab import Vocabulary
from seed_jax.errors import UserError
from seed_jax.train.stages import Batches

Tree = dict[str, Any]


def demo_data(config: ml_collections.ConfigDict, workdir: Path | epath.Path) -> Any:
    """Return the embedded data below the workdir, made where it is not there yet; None unless the config wants it."""
    if not config.data.demo:
        return None
    if not isinstance(workdir, Path):
        raise UserError(f"data.demo makes its data below a local --workdir, not in {workdir}.")
    from seed_jax.train import demo  # only the :tiny variants need it, and the inference side with it

    return demo.prepare(workdir / "demo", config.seed)


def finish(prepared: Any, stage: str) -> Callable[[Tree, Path], None]:
    """Return what to do after the last step: show answers of a demonstration."""
    if prepared is None:
        return lambda variables, workdir: None
    from seed_jax.train import samples

    return functools.partial(samples.show, prepared, stage)


def batches(
    config: ml_collections.ConfigDict, parts: Sequence[dict[str, Any]], vocabulary: Vocabulary, rows: list[int]
) -> Batches:
    """Open the shards and return the packed batches of this process's rows."""
    if not parts:
        raise UserError("data.parts is empty: name at least one folder of shards, or set data.demo=True.")
    return iter(
        packed_batches(
            make_parts(parts, vocabulary, config.data.get("weight_by", "samples")),
            rows=config.data.batch_size,
            lanes=rows,
            length=config.data.sequence_length,
            seed=config.seed,
            tokenizer=config.data.image_tokenizer or None,
            prefetch=config.data.prefetch,
        )
    )


def row_spec(length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of one packed row."""
    return {name: jax.ShapeDtypeStruct(row.shape[1:], row.dtype) for name, row in empty_batch(1, length).items()}


def image_tokenizer(prepared: Any, workdir: Path | epath.Path) -> str | None:
    """Return where the demonstration's image tokenizer lies, seen from the model directory."""
    # Relative to the folder of config.json, so that a workdir can be moved.
    return str(Path("..") / prepared.image_tokenizer.relative_to(workdir)) if prepared else None
