"""Prompts and settings, checked and grouped into batches that one compiled program answers."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.grammar import Grammar
from seed_jax.inference.generation.model_runner import Prompts
from seed_jax.inference.generation.sampling_params import Controls, Settings
from seed_jax.inference.generation.stop_strings import StopTables
from seed_jax.models.llama.model import KVCache, LlamaConfig

SMALLEST_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    Attributes:
        prompt: token ids, BOS included.
        negative: what guidance leads away from, by default BOS alone.
    """

    prompt: Sequence[int]
    settings: Settings = Settings()
    negative: Sequence[int] | None = None

    @property
    def guided(self) -> bool:
        return self.settings.guidance_scale != 1.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests as arrays; the rows beyond `count` are filling and have no budget."""

    prompts: Prompts
    controls: Controls
    beams: int
    guided: bool
    new_tokens: int
    count: int


def bucket(size: int, limit: int | None = None, smallest: int = SMALLEST_BUCKET) -> int:
    """Return the power of two, from `smallest` on, that `size` is filled up to; never more than `limit`."""
    filled = max(smallest, 1 << (size - 1).bit_length())
    return filled if limit is None else min(filled, limit)


def groups(requests: Sequence[Request], batch_size: int | None) -> Iterator[list[int]]:
    """Cut requests (their places) into batches whose programs are the same: of equal beams, and guided or not."""
    kinds: dict[tuple[int, bool], list[int]] = {}
    for place, request in enumerate(requests):
        kinds.setdefault((request.settings.beams, request.guided), []).append(place)
    for places in kinds.values():
        size = batch_size or len(places)
        yield from (places[start : start + size] for start in range(0, len(places), size))


@dataclasses.dataclass(frozen=True)
class Batcher:
    """Turns requests to one model into batches."""

    config: LlamaConfig
    vocabulary: Vocabulary
    grammar: Grammar
    tables: StopTables
    shards: int = 1

    def budget(self, request: Request, name: str = "The prompt") -> int:
        """Return how many tokens may be generated; UserError where the request cannot be answered."""
        settings, limit = request.settings, self.config.max_length
        self._check_ids(request.prompt, name)
        longest = len(request.prompt)
        if request.guided and request.negative is not None:
            self._check_ids(request.negative, f"{name}'s negative prompt")
            longest = max(longest, len(request.negative))
        budget = min(settings.max_new_tokens, limit - longest)
        need = self.grammar.need(settings.rule, request.prompt)
        if need > budget:
            one = need <= self.grammar.tokens_per_image
            wanted = "image to be generated needs" if one else "images to be generated need"
            raise UserError(
                f"{name} leaves room for {budget} new tokens (max_new_tokens and the context of {limit} considered), "
                f"but the {wanted} {need}."
            )
        return budget

    def batch(self, requests: Sequence[Request], names: Sequence[str]) -> Batch:
        """Return requests of equal beams and guidance as arrays, filled up to the sizes of a program."""
        first = requests[0]
        rows = bucket(len(requests), smallest=1)
        rows = -(-rows // self.shards) * self.shards
        budgets = [self.budget(request, name) for request, name in zip(requests, names, strict=True)]
        filling = rows - len(requests)
        settings = [request.settings for request in requests] + [Settings()] * filling
        controls = Controls.of(settings, budgets + [0] * filling, self.tables)
        bos = [self.vocabulary.bos]
        sides = [
            [request.prompt, request.negative or bos] if first.guided else [request.prompt] for request in requests
        ]
        flat = [prompt for pair in sides for prompt in pair] + [bos] * filling * len(sides[0])
        new_tokens = bucket(max(budgets), self.config.max_length)
        return Batch(self.pad(flat), controls, first.settings.beams, first.guided, new_tokens, len(requests))

    def pad(self, prompts: Sequence[Sequence[int]]) -> Prompts:
        """Return prompts as arrays, filled up to a program's length."""
        length = bucket(max(map(len, prompts)), self.config.max_length)
        tokens = np.full((len(prompts), length), self.vocabulary.pad, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        return Prompts(tokens, np.array([len(prompt) for prompt in prompts], np.int32))

    def _check_ids(self, ids: Sequence[int], name: str) -> None:
        limit = self.config.max_length
        if not 0 < len(ids) < limit:
            raise UserError(
                f"{name} has {len(ids)} tokens, expected 1 to {limit - 1}: the model's context is {limit} tokens, "
                "answer included."
            )
        if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise UserError(f"{name} has token ids outside 0 to {self.config.vocab_size - 1}: it is of another model.")


@dataclasses.dataclass(frozen=True)
class Placement:
    """One device (no mesh) or a mesh."""

    mesh: Mesh | None = None

    @property
    def shards(self) -> int:
        """Return into how many parts a batch is cut."""
        return 1 if self.mesh is None else sharding.batch_shards(self.mesh)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let programs that are called inside know the mesh."""
        with contextlib.ExitStack() as stack:
            if self.mesh is not None:
                stack.enter_context(jax.set_mesh(self.mesh))
                stack.enter_context(nn.logical_axis_rules(sharding.RULES))
            yield

    def rows(self, rows: Any) -> Any:
        return jax.device_put(rows, None if self.mesh is None else sharding.batch_sharding(self.mesh))

    def controls(self, controls: Controls) -> Controls:
        if self.mesh is None or controls.stops is None:
            return self.rows(controls)
        table = jax.device_put(controls.stops.table, sharding.replicated(self.mesh))
        placed = self.rows(controls.replace(stops=None))
        return placed.replace(stops=controls.stops.replace(table=table, which=self.rows(controls.stops.which)))


def by_rows(state: Any) -> Any:
    """Cut what a loop carries by rows, before the first step as after it: else the second step would compile anew."""

    def cut_rows(leaf: Any) -> Any:
        if isinstance(leaf, KVCache) or leaf.ndim == 0:
            return leaf  # the cache is cut where it is written
        return nn.with_logical_constraint(leaf, ("batch", *[None] * (leaf.ndim - 1)))

    return jax.tree.map(cut_rows, state, is_leaf=lambda leaf: isinstance(leaf, KVCache))
