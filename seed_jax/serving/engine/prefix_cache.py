"""Which blocks of prompt tokens have their keys and values in the block store; the arrays are `SlotPool`'s."""

import collections
import hashlib
from collections.abc import Sequence

import numpy as np


class PrefixCache:
    """Maps the hash of a prefix to a block of the store, least recently used blocks first to go.

    A prefix is hashed block by block, each with the hash of what precedes it, so that a block is found only after the
    same tokens. An image is 32 ordinary ids, so the ids are all that matters.

    Args:
        num_blocks: size of the store.
        block_size: tokens of a block.
    """

    def __init__(self, num_blocks: int, block_size: int):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._blocks: collections.OrderedDict[bytes, int] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def hashes(self, tokens: Sequence[int], salt: str) -> list[bytes]:
        """Return the hash of every full block of `tokens`, with all tokens before it."""
        parent = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
        hashes = []
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            block = np.asarray(tokens[end - self.block_size : end], np.int32)
            parent = hashlib.sha256(parent + block.tobytes()).digest()
            hashes.append(parent)
        return hashes

    def longest(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest stored prefix, and mark them as used."""
        blocks = []
        for key in hashes:
            if key not in self._blocks:
                break
            blocks.append(self._blocks[key])
        self._touch(hashes[: len(blocks)])
        return blocks

    def allocate(self, hashes: Sequence[bytes]) -> int | None:
        """Return the block to store the last of a prefix's blocks in; None if it is stored already or has no place."""
        *parents, key = hashes
        if key in self._blocks or not self.num_blocks:
            return None
        full = len(self._blocks) >= self.num_blocks
        block = self._blocks.popitem(last=False)[1] if full else len(self._blocks)
        self._blocks[key] = block
        self._touch(parents)
        return block

    def _touch(self, hashes: Sequence[bytes]) -> None:
        """Mark as used, backwards: the end of a prefix is evicted before its beginning, without which it is useless."""
        for key in reversed(hashes):
            if key in self._blocks:
                self._blocks.move_to_end(key)
