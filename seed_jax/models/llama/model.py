"""LLaMA, the language model of SEED-LLaMA (spec 0.2, D.1).

Shapes: B batch size, T positions, S cache slots, D hidden size, V vocabulary, Vp the vocabulary padded to a multiple of
128 so that a mesh divides it. The padding is not visible outside: its logits are cut off and its gradients are zero.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from seed_jax.models.llama.block import RESIDUAL_AXES, AttentionMetadata, Block, LayerState, attention_metadata
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.llama.kv_cache import KVCache
from seed_jax.models.nn import quantized, remat
from seed_jax.models.nn.layers import RMSNorm, param
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.precision import Precision
from seed_jax.typing import Tree

__all__ = ["DecodeOutput", "KVCache", "Llama", "LlamaConfig", "stack_layers", "unstack_layers"]

LOGITS_AXES = ("batch", "sequence", "act_vocab")


@flax.struct.dataclass
class DecodeOutput:
    """Logits (float32) of the token after each of N positions, and the updated KV cache."""

    logits: Float[Array, "B N V"] | Any  # Any: shapes have the same structure
    cache: KVCache


class Llama(nn.Module):
    """Decoder-only language model.

    Example:
        model = Llama(LlamaConfig.tiny(vocab_size=1000))
        variables = model.init(jax.random.key(0), tokens)
        logits = model.apply(variables, tokens)
        output = model.apply(variables, tokens, model.init_cache(1, 64), positions, prefill=True, method="decode")

    Attributes:
        config: sizes.
        precision: dtypes.
        remat: what a layer saves for the backward pass, see `seed_jax.models.nn.remat`.
        lora: sizes of the adapters in the collection `lora`; needed where adapters are passed.
        attention: implementation, see `seed_jax.models.nn.attention`.
        scan_layers: run the layers as one scanned layer with stacked parameters (`layers`), or unrolled with parameters
            of their own (`layers_0`, ...; `unstack_layers` converts), which compiles longer and decodes faster on a
            CPU.
    """

    config: LlamaConfig
    precision: Precision = Precision()
    remat: str = "none"
    lora: LoraSpec | None = None
    attention: str = "xla"
    scan_layers: bool = True

    def setup(self):
        config = self.config
        block = remat.wrap(Block, self.remat, scanned=self.scan_layers)
        arguments = (config, self.precision, self.lora, self.attention)
        self.embed_tokens = Embedding(config, self.precision)
        if self.scan_layers:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(*arguments)
        else:
            self.layers = [block(*arguments) for _ in range(config.num_layers)]
        self.norm = RMSNorm(config.rms_norm_eps, self.precision)
        self.lm_head = Head(config, self.precision)

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
        """Return the last layer's states after the final norm, the input of `losses.next_token_loss`.

        Args:
            tokens: token ids.
            segment_ids: packed sequences; a position sees the earlier ones of its own segment only.
            positions: for the rotary angles, restarting in every segment; by default 0, 1, ..., T - 1.
            deterministic: no dropout on the adapters; otherwise the rng `dropout` is needed.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        metadata = attention_metadata(self.config, positions, segment_ids=segment_ids, deterministic=deterministic)
        if self.is_initializing():  # so that the head has parameters whichever method initializes
            self.lm_head(jnp.zeros((1, 1, self.config.hidden_size), self.precision.compute_dtype))
        return self._run_layers(tokens, metadata, None).hidden

    def decode(
        self,
        tokens: Int[Array, "B T"],
        cache: KVCache,
        positions: Int[Array, "B T"],
        *,
        prefill: bool = False,
        logits_at: Int[Array, " B"] | None = None,
    ) -> DecodeOutput:
        """Write positions to the KV cache and score the next token: a whole prompt, a chunk of one, or one token.

        A position sees the cache slots up to its own. Prompts of unequal length are padded on the right: what padding
        writes to later slots is overwritten before any position that could see it is decoded.

        Args:
            tokens: token ids.
            cache: keys and values of the earlier positions.
            positions: index of each token in its sequence, also its cache slot.
            prefill: the cache is empty and `positions` are 0, 1, ..., T - 1: attend within them, which is cheaper.
            logits_at: for each sequence the index into T whose logits are returned (N = 1); by default all (N = T).
        """
        slots = jnp.arange(cache.slots)[None, None]
        mask = None if prefill else (slots <= positions[:, :, None])[:, None]
        state = self._run_layers(tokens, attention_metadata(self.config, positions, cache_mask=mask), cache)
        hidden = state.hidden
        if logits_at is not None:
            hidden = jnp.take_along_axis(hidden, logits_at[:, None, None], axis=1)
        assert state.cache is not None
        return DecodeOutput(logits=self.lm_head(hidden), cache=state.cache)

    @nn.nowrap
    def init_cache(self, batch: int, slots: int) -> KVCache:
        """Return an empty KV cache for `batch` sequences of up to `slots` positions."""
        config = self.config
        return KVCache.zeros(
            config.num_layers, batch, slots, config.num_kv_heads, config.head_size, self.precision.compute_dtype
        )

    def _check_adapters(self) -> None:
        # The projections look adapters up and run without those they do not find: a misplaced tree would be ignored.
        names = {"layers"} if self.scan_layers else {f"layers_{i}" for i in range(self.config.num_layers)}
        adapted = set(self.variables.get("lora", ()))
        if adapted and self.lora is None:
            raise ValueError("adapters were passed to a Llama built without `lora`")
        if not adapted <= names:
            raise ValueError(
                f"adapters are under {sorted(adapted)}, expected {sorted(names)} (scan_layers={self.scan_layers})"
            )

    def _run_layers(self, tokens: Int[Array, "B T"], metadata: AttentionMetadata, cache: KVCache | None) -> LayerState:
        self._check_adapters()
        state = LayerState(self.embed_tokens(tokens), cache)
        layers = jnp.arange(self.config.num_layers)
        if isinstance(self.layers, nn.Module):
            state, _ = self.layers(state, layers, metadata)  # pyright: ignore[reportCallIssue]
        else:
            for index, block in enumerate(self.layers):
                state, _ = block(state, layers[index], metadata)
        return LayerState(self.norm(state.hidden), state.cache)


def unstack_layers(tree: Tree) -> Tree:
    """Convert parameters or adapters of the scanned model to those of the model with `scan_layers=False`."""
    count = len(jax.tree.leaves(tree["layers"])[0])
    unstacked = {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"]) for i in range(count)}
    return {name: subtree for name, subtree in tree.items() if name != "layers"} | unstacked


def stack_layers(tree: Tree) -> Tree:
    """Undo `unstack_layers`."""
    count = sum(name.startswith("layers_") for name in tree)
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[f"layers_{i}"] for i in range(count)))
    return {name: subtree for name, subtree in tree.items() if not name.startswith("layers_")} | {"layers": layers}


def _padded_normal(axis: int, size: int):
    """Return an initializer N(0, 0.02) whose entries from `size` on along `axis` are zero."""

    def init(key, shape, dtype):
        index = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return jnp.where(index < size, nn.initializers.normal(0.02)(key, shape, dtype), 0)

    return init


class Embedding(nn.Module):
    """Token embedding."""

    config: LlamaConfig
    precision: Precision

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        config = self.config
        table = param(
            self,
            "embedding",
            _padded_normal(0, config.vocab_size),
            (config.padded_vocab_size, config.hidden_size),
            ("vocab", "embed"),
            self.precision.param_dtype,
        ).astype(self.precision.compute_dtype)
        # All-gathered over `embed` first: a look-up in a table that is sharded in both dimensions makes the partitioner
        # replicate it.
        table = with_logical_constraint(table, ("act_vocab", "act_embed"))
        return with_logical_constraint(jnp.take(table, tokens, axis=0), RESIDUAL_AXES)


class Head(nn.Module):
    """Output head: logits over the vocabulary, accumulated in float32 whatever the compute dtype."""

    config: LlamaConfig
    precision: Precision

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        config = self.config
        logits = quantized.quantized_matmul(self, hidden)  # if the parameters hold a quantized kernel
        if logits is None:
            kernel = param(
                self,
                "kernel",
                _padded_normal(1, config.vocab_size),
                (config.hidden_size, config.padded_vocab_size),
                ("embed", "vocab"),
                self.precision.param_dtype,
            ).astype(hidden.dtype)
            logits = jnp.matmul(hidden, kernel, precision=self.precision.matmul, preferred_element_type=jnp.float32)
        return with_logical_constraint(logits, LOGITS_AXES)[..., : config.vocab_size]
