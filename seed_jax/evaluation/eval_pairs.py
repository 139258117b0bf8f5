"""A held-out set of images with captions, embedded batch by batch over the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from seed_jax import sharding
from seed_jax.data.batches.pairs import PairReader, image_and_captions
from seed_jax.data.shards.shards import Shards, open_shards
from seed_jax.data.text import bert
from seed_jax.typing import Tree

Embed = Callable[[Tree, dict[str, jax.Array]], dict[str, jax.Array]]
"""(variables, batch) -> named arrays with one entry per row of the batch."""
Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class EvalPairs:
    """Images with all their captions, read again at each use.

    Attributes:
        shards: the images.
        reader: turns records into rows; without augmentation.
        batch_size: rows of a global batch.
        max_images: use the first so many images only; 0 uses all.
    """

    shards: Shards
    reader: PairReader
    batch_size: int
    max_images: int = 0

    @classmethod
    def open(cls, directory: str | Path, reader: PairReader, batch_size: int, max_images: int = 0) -> "EvalPairs":
        """Open a shard directory; `reader` may augment, evaluation does not."""
        return cls(open_shards(directory), dataclasses.replace(reader, augmentation=None), batch_size, max_images)

    @property
    def num_images(self) -> int:
        return min(len(self.shards), self.max_images) if self.max_images else len(self.shards)

    @functools.cached_property
    def _captions(self) -> tuple[list[str], Int[np.ndarray, " M"]]:
        """All captions, and the index of the image of each."""
        captions = [image_and_captions(self.shards[index])[1] for index in range(self.num_images)]
        owners = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
        return [bert.clean(text) for texts in captions for text in texts], owners

    @property
    def image_of_text(self) -> Int[np.ndarray, " M"]:
        """The index of each caption's image."""
        return self._captions[1]

    def embed_images(self, embed: Embed, variables: Tree) -> dict[str, np.ndarray]:
        """Apply `embed` to batches with `image` (uint8 [B, S, S, 3]); returns arrays with one entry per image."""

        def read(index: int) -> Row:
            image, _ = image_and_captions(self.shards[index])
            return {"image": self.reader.pixels(image, np.random.default_rng(0))}

        return self._map(embed, variables, self.num_images, read)

    def embed_captions(self, embed: Embed, variables: Tree) -> dict[str, np.ndarray]:
        """Apply `embed` to batches with `text` and `text_mask` [B, T]; returns arrays with one entry per caption."""
        captions, _ = self._captions

        def read(index: int) -> Row:
            padded = self.reader.vocabulary.pad(captions[index], self.reader.text_length)
            return {"text": padded.ids, "text_mask": padded.mask}

        return self._map(embed, variables, len(captions), read)

    def _map(self, embed: Embed, variables: Tree, count: int, read: Callable[[int], Row]) -> dict[str, np.ndarray]:
        mesh = jax.sharding.get_mesh()  # the training loop evaluates inside its mesh
        program = _replicated_program(embed, mesh)
        outputs = [
            jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), program(variables, batch))
            for batch in self._batches(count, read, mesh)
        ]
        return {name: np.concatenate([output[name] for output in outputs])[:count] for name in outputs[0]}

    def _batches(self, count: int, read: Callable[[int], Row], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
        """Yield global batches; the last row is repeated until the last batch is full."""
        batch_sharding = sharding.batch_sharding(mesh)
        local_indices = sharding.local_batch_indices(batch_sharding, self.batch_size)
        for start in range(0, count, self.batch_size):
            rows = [read(min(start + index, count - 1)) for index in local_indices]
            stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            yield sharding.shard_batch(stacked, batch_sharding, self.batch_size)


@functools.cache
def _replicated_program(embed: Embed, mesh: Mesh) -> Embed:
    """Compile `embed` with replicated outputs: every process gets the whole result."""
    return jax.jit(embed, out_shardings=sharding.replicated_sharding(mesh))
