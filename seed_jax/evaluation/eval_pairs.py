"""A held set of captioned pictures, embedded batch by batch over the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.data.batches.pairs import PairReader, picture_and_captions
from seed_jax.data.shards.shards import Shards, open_shards
from seed_jax.data.text import bert

Tree = dict[str, Any]
Embed = Callable[[Tree, dict[str, jax.Array]], dict[str, jax.Array]]
"""(variables, rows) -> named arrays with one entry a row."""


@dataclasses.dataclass(frozen=True, eq=False)
class HeldPairs:
    """Pictures with all their captions; read anew at each use, in batches of `batch_size` rows.

    Attributes:
        reader: without augmentation.
        most: use the first pictures only; 0 uses all.
    """

    shards: Shards
    reader: PairReader
    batch_size: int
    most: int = 0

    @classmethod
    def open(cls, directory: str | Path, reader: PairReader, batch_size: int, most: int = 0) -> "HeldPairs":
        return cls(open_shards(directory), dataclasses.replace(reader, augmentation=None), batch_size, most)

    @property
    def num_pictures(self) -> int:
        return min(len(self.shards), self.most) if self.most else len(self.shards)

    @functools.cached_property
    def _captions(self) -> tuple[list[str], np.ndarray]:
        """Return all captions and the picture each belongs to."""
        texts = [picture_and_captions(self.shards[index])[1] for index in range(self.num_pictures)]
        owners = np.repeat(np.arange(len(texts)), [len(each) for each in texts])
        return [bert.clean(text) for each in texts for text in each], owners

    @property
    def image_of_text(self) -> np.ndarray:
        return self._captions[1]

    def over_pictures(self, embed: Embed, variables: Tree) -> dict[str, np.ndarray]:
        """Apply `embed` to rows with `image` (uint8); returns NumPy arrays with one entry a picture."""

        def row(index: int) -> dict[str, np.ndarray]:
            picture, _ = picture_and_captions(self.shards[index])
            return {"image": self.reader.pixels(picture, np.random.default_rng(0))}

        return self._map(embed, variables, self.num_pictures, row)

    def over_captions(self, embed: Embed, variables: Tree) -> dict[str, np.ndarray]:
        """Apply `embed` to rows with `text` and `text_mask`; returns NumPy arrays with one entry a caption."""
        texts = self._captions[0]

        def row(index: int) -> dict[str, np.ndarray]:
            framed = self.reader.vocabulary.frame(texts[index], self.reader.text_length)
            return {"text": framed.ids, "text_mask": framed.mask}

        return self._map(embed, variables, len(texts), row)

    def _map(self, embed: Embed, variables: Tree, count: int, row: Callable[[int], dict[str, np.ndarray]]):
        mesh = jax.sharding.get_mesh()  # of the training loop, which holds it while it measures
        everywhere = _compiled(embed, mesh)
        found = [
            jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), everywhere(variables, batch))
            for batch in self._batches(count, row, mesh)
        ]
        return {name: np.concatenate([part[name] for part in found])[:count] for name in found[0]}

    def _batches(
        self, count: int, row: Callable[[int], dict[str, np.ndarray]], mesh: Mesh
    ) -> Iterator[dict[str, jax.Array]]:
        """Yield global batches; rows beyond the end repeat the last one."""
        cut = sharding.batch_sharding(mesh)
        local = sharding.local_rows(cut, self.batch_size)
        for start in range(0, count, self.batch_size):
            rows = [row(min(start + place, count - 1)) for place in local]
            stacked = {name: np.stack([each[name] for each in rows]) for name in rows[0]}
            yield sharding.place(stacked, cut, self.batch_size)


@functools.cache
def _compiled(embed: Embed, mesh: Mesh) -> Embed:
    """Compile `embed` so that every process gets the whole result."""
    return jax.jit(embed, out_shardings=sharding.replicated(mesh))
