"""LLaMA, the language model of SEED-LLaMA (spec 0.2, D.1).

Shapes: B rows, T positions, S cache slots, D hidden size, V vocabulary, Vp the vocabulary rounded up to a multiple of
128 so that it divides over a mesh. The surplus never shows: its scores are cut off and its gradients are zero.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seed_jax.models.llama.block import RESIDUAL, Block, Stream, Window, window
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.llama.kv_cache import KVCache
from seed_jax.models.nn import quantized, remat
from seed_jax.models.nn.layers import RMSNorm
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import Precision

__all__ = ["Decoded", "KVCache", "Llama", "LlamaConfig", "stack_layers", "unstack_layers"]


@flax.struct.dataclass
class Decoded:
    """Scores (float32) of the token after a position, and the cache that now holds the positions given."""

    logits: Float[Array, "B N V"] | Any  # Any: shapes travel in the same structure
    cache: KVCache


class Llama(nn.Module):
    """Predict the next token.

    Attributes:
        remat: what a layer keeps for the backward pass, see `seed_jax.models.nn.remat`.
        lora: sizes of the adapters in the collection `lora`; needed where adapters are passed.
        attention: implementation, see `seed_jax.models.nn.attention`.
        scan: run the layers as one scanned layer with stacked parameters (`layers`), or one by one with parameters of
            their own (`layers_0`, ...; `unstack_layers` converts), which compiles longer and decodes faster on a CPU.
    """

    config: LlamaConfig
    precision: Precision = Precision()
    remat: str = "none"
    lora: LoraSpec | None = None
    attention: str = "xla"
    scan: bool = True

    def setup(self):
        c = self.config
        block, sizes = remat.wrap(Block, self.remat, scanned=self.scan), (c, self.precision, self.lora, self.attention)
        self.embed_tokens = Embedding(c, self.precision)
        if self.scan:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(*sizes)
        else:
            self.layers = [block(*sizes) for _ in range(c.num_layers)]
        self.norm = RMSNorm(c.rms_norm_eps, self.precision)
        self.lm_head = Head(c, self.precision)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T V"]:
        """Return the logits (float32) of the token after each position; arguments as in `features`."""
        return self.lm_head(self.features(tokens, segment_ids, positions, deterministic))

    def features(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """Return the last layer's states after the final norm, which `losses.next_token_loss` takes.

        Args:
            segment_ids: packed sequences; a position sees the earlier ones of its own segment only.
            positions: for the rotary angles, restarting in every segment; by default 0, 1, ... along the row.
            deterministic: without dropout on the adapters; otherwise the rng `dropout` is needed.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        at = window(self.config, positions, segment_ids=segment_ids, deterministic=deterministic)
        if self.is_initializing():  # so that the head exists whichever method initialises
            self.lm_head(jnp.zeros((1, 1, self.config.hidden_size), self.precision.compute_dtype))
        return self._run(tokens, at, None).x

    def decode(
        self,
        tokens: Int[Array, "B T"],
        cache: KVCache,
        positions: Int[Array, "B T"],
        *,
        fresh: bool = False,
        at: Int[Array, " B"] | None = None,
    ) -> Decoded:
        """Add positions to the cache and score what follows them: a whole prompt, a part of one, or one token.

        A position sees the cache slots 0 to itself. Prompts of unequal length are padded on the right: what padding
        leaves in later slots is overwritten before any position that could see it is decoded.

        Args:
            fresh: the cache is empty and `positions` are 0, 1, ..., T - 1: attend inside the window, which is cheaper.
            at: for each row the one index into T whose logits are wanted (N = 1); by default all of them (N = T).
        """
        slots = jnp.arange(cache.slots)[None, None]
        mask = None if fresh else (slots <= positions[:, :, None])[:, None]
        stream = self._run(tokens, window(self.config, positions, mask=mask), cache)
        hidden = stream.x if at is None else jnp.take_along_axis(stream.x, at[:, None, None], axis=1)
        return Decoded(logits=self.lm_head(hidden), cache=stream.cache)

    @nn.nowrap
    def empty_cache(self, batch: int, slots: int) -> KVCache:
        c = self.config
        return KVCache.zeros(c.num_layers, batch, slots, c.num_kv_heads, c.head_size, self.precision.compute_dtype)

    def _check_adapters(self) -> None:
        # The projections look adapters up and go without where there are none: a misplaced tree would be ignored.
        names = {"layers"} if self.scan else {f"layers_{i}" for i in range(self.config.num_layers)}
        found = set(self.variables.get("lora", ()))
        if found and self.lora is None:
            raise ValueError("adapters were passed to a Llama built without `lora`")
        if not found <= names:
            raise ValueError(f"adapters lie under {sorted(found)}, expected {sorted(names)} (scan={self.scan})")

    def _run(self, tokens: Int[Array, "B T"], at: Window, cache: KVCache | None) -> Stream:
        self._check_adapters()
        stream, layers = Stream(self.embed_tokens(tokens), cache), jnp.arange(self.config.num_layers)
        if self.scan:
            stream, _ = self.layers(stream, layers, at)
        else:
            for layer, block in enumerate(self.layers):
                stream, _ = block(stream, layers[layer], at)
        return stream.replace(x=self.norm(stream.x))


def unstack_layers(tree: dict) -> dict:
    """Return parameters or adapters of the scanned model as those of the model with `scan=False`."""
    count = len(jax.tree.leaves(tree["layers"])[0])
    parts = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"]) for i in range(count)}
    return {name: part for name, part in tree.items() if name != "layers"} | parts


def stack_layers(tree: dict) -> dict:
    """Undo `unstack_layers`."""
    count = sum(name.startswith("layers_") for name in tree)
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[f"layers_{i}"] for i in range(count)))
    return {name: part for name, part in tree.items() if not name.startswith("layers_")} | {"layers": layers}


LOGITS = ("batch", "sequence", "act_vocab")


def _padded_normal(axis: int, size: int):
    """Return an initializer N(0, 0.02) whose entries from `size` on along `axis` are zero."""

    def init(key, shape, dtype):
        index = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return jnp.where(index < size, nn.initializers.normal(0.02)(key, shape, dtype), 0)

    return init


class Embedding(nn.Module):
    """Look tokens up."""

    config: LlamaConfig
    precision: Precision

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        init = nn.with_logical_partitioning(_padded_normal(0, self.config.vocab_size), ("vocab", "embed"))
        shape = (self.config.padded_vocab_size, self.config.hidden_size)
        table = self.param("embedding", init, shape, self.precision.param_dtype)
        # Gathered over `embed` first: looking up in a table that is cut both ways makes the partitioner copy it whole.
        table = nn.with_logical_constraint(table.astype(self.precision.compute_dtype), ("act_vocab", "act_embed"))
        return nn.with_logical_constraint(jnp.take(table, tokens, axis=0), RESIDUAL)


class Head(nn.Module):
    """Score every token of the vocabulary; sums are float32 whatever the compute dtype."""

    config: LlamaConfig
    precision: Precision

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        logits = quantized.product(self, hidden)  # where the parameters hold a rounded kernel
        if logits is None:
            init = nn.with_logical_partitioning(_padded_normal(1, self.config.vocab_size), ("embed", "vocab"))
            shape = (self.config.hidden_size, self.config.padded_vocab_size)
            kernel = self.param("kernel", init, shape, self.precision.param_dtype).astype(hidden.dtype)
            logits = jnp.matmul(hidden, kernel, precision=self.precision.matmul, preferred_element_type=jnp.float32)
        return nn.with_logical_constraint(logits, LOGITS)[..., : self.config.vocab_size]
