"""What every decoder-only language model has: layers under a scan, packing, and decoding with a KV cache.

A model is a subclass of `DecoderOnly` with its own block, embeddings and head; trainer, generator, exporter and memory
plan use this interface only. `models/language_models.py` lists the models.

Shapes: B batch size, T positions, P embeddings of a prefix, S cache slots, D hidden size, W width of the token
embeddings, V vocabulary, Vp the padded vocabulary.
"""

from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.core.spmd import get_logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint
from jaxtyping import Array, Bool, Float, Int

from seed_jax.models.config_io import SerializableConfig
from seed_jax.models.nn import remat
from seed_jax.models.nn.attention import attend, attend_to_cache
from seed_jax.models.nn.kv_cache import KVCache
from seed_jax.models.nn.lora import LoraSpec
from seed_jax.models.nn.token_embedding import RESIDUAL_AXES, SEQUENCE_PARALLEL_AXES, padded_size
from seed_jax.precision import Precision
from seed_jax.typing import Leaf, Tree


class DecoderOnlyConfig(SerializableConfig):
    """The sizes of a `DecoderOnly`; base class of the models' frozen dataclasses."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_length: int

    @property
    def head_size(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        """Vocabulary size rounded up so that a mesh divides it."""
        return padded_size(self.vocab_size)

    @property
    def num_input_tokens(self) -> int:
        """Number of ids that an input may hold; those from `vocab_size` on are never generated."""
        return self.vocab_size

    @property
    def embedding_size(self) -> int:
        """Width of the token embeddings and of the states that the head multiplies."""
        return self.hidden_size


@flax.struct.dataclass
class AttentionMetadata:
    """What every layer needs to know about the T positions of a call.

    Attributes:
        positions: index of each token in its sequence.
        segment_ids: packed sequences; None for one sequence per row.
        cache_mask: which cache slots a position sees; None attends causally within the T positions.
        deterministic: no dropout.
    """

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"] | None = None
    cache_mask: Bool[Array, "B 1 T S"] | None = None
    deterministic: bool = flax.struct.field(pytree_node=False, default=True)


@flax.struct.dataclass
class LayerState:
    """What a layer takes and returns: the residual stream, and the KV cache while decoding."""

    hidden: Float[Array, "B T D"]
    cache: KVCache | None = None


@flax.struct.dataclass
class DecodeOutput:
    """Logits (float32) of the token after each of N positions, and the updated KV cache."""

    logits: Float[Array, "B N V"] | Any  # Any: shapes have the same structure
    cache: KVCache


@flax.struct.dataclass
class AttentionOutput:
    """The attention's result before its output projection, and the updated KV cache."""

    context: Float[Array, "B T H D"]
    cache: KVCache | None


def causal_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    cache: KVCache | None,
    layer: Int[Leaf, ""],
    metadata: AttentionMetadata,
    precision: Precision,
    implementation: str,
) -> AttentionOutput:
    """Attend causally within the given positions, or to the KV cache after adding them to it."""
    if cache is not None:
        cache = cache.write(layer, k, v, None if metadata.cache_mask is None else metadata.positions)
    if cache is not None and metadata.cache_mask is not None:
        cached = cache.read(layer)
        context = attend_to_cache(q, cached.k, cached.v, mask=metadata.cache_mask, precision=precision)
    else:
        context = attend(
            q,
            k,
            v,
            causal=True,
            segment_ids=metadata.segment_ids,
            precision=precision,
            implementation=implementation,
        )
    return AttentionOutput(context, cache)


def shard_residual(x: Float[Array, "B T D"], cache: KVCache | None) -> Float[Array, "B T D"]:
    """Shard the residual stream over the batch, and while training its positions over the mesh axis `tensor`.

    What a layer saves for the backward pass is then divided by `tensor`; instead of the all-reduce after a row-parallel
    matmul there are a reduce-scatter and an all-gather around the norm, the same bytes.
    """
    axes = RESIDUAL_AXES if cache is not None or x.shape[1] % _sequence_shards() else SEQUENCE_PARALLEL_AXES
    return with_logical_constraint(x, axes)


def _sequence_shards() -> int:
    """Return the number of devices over which the positions of the residual stream are sharded."""
    mesh, rules = jax.sharding.get_abstract_mesh(), get_logical_axis_rules()
    if mesh.empty or not rules:
        return 1
    (name,) = logical_to_mesh_axes(SEQUENCE_PARALLEL_AXES[1:2], rules) or (None,)
    return mesh.shape[name] if isinstance(name, str) else 1


class DecoderOnly(nn.Module):
    """Base class of the language models.

    A subclass sets `block_class` and `lora_targets`, creates `self.layers = self.make_layers()` and its other modules
    in `setup`, and implements `embed`, `add_positions`, `final_states`, `logits`, `attention_metadata` and
    `head_kernel`.

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

    config: Any
    precision: Precision = Precision()
    remat: str = "none"
    lora: LoraSpec | None = None
    attention: str = "xla"
    scan_layers: bool = True

    block_class: ClassVar[type[nn.Module]]
    lora_targets: ClassVar[tuple[str, ...]]  # names of the projections that LoRA adapts by default

    @nn.nowrap
    def make_layers(self) -> nn.Module | list[nn.Module]:
        """Create the layers, scanned or unrolled; a block is `(state, layer, metadata) -> (state, None)`."""
        block: Any = remat.wrap(self.block_class, self.remat, scanned=self.scan_layers)
        arguments = (self.config, self.precision, self.lora, self.attention)
        if not self.scan_layers:
            return [block(*arguments) for _ in range(self.config.num_layers)]
        return nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(*arguments)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T W"]:
        """Return the token embeddings."""
        raise NotImplementedError

    def add_positions(self, embedded: Float[Array, "B T W"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the first layer's input: with learned positions their embeddings are added."""
        raise NotImplementedError

    def final_states(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T W"]:
        """Return the states that the head multiplies, given the last layer's."""
        raise NotImplementedError

    def logits(self, states: Float[Array, "B T W"]) -> Float[Array, "B T V"]:
        """Return the logits (float32) of the token after each position."""
        raise NotImplementedError

    @nn.nowrap
    def attention_metadata(self, positions: Int[Array, "B T"], **options: Any) -> AttentionMetadata:
        """Return what the layers need; options are the other fields of `AttentionMetadata`."""
        raise NotImplementedError

    @staticmethod
    def head_kernel(params: Tree) -> Float[Array, "W Vp"]:
        """Return the head's kernel, for losses that never materialize all logits."""
        raise NotImplementedError

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        deterministic: bool = True,
        prefix: Float[Array, "B P W"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Return the logits (float32) of the token after each position; arguments as in `features`."""
        return self.logits(self.features(tokens, segment_ids, positions, deterministic, prefix))

    def features(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        deterministic: bool = True,
        prefix: Float[Array, "B P W"] | None = None,
    ) -> Float[Array, "B L W"]:
        """Return the states that the head multiplies, the input of `losses.next_token_loss`.

        Args:
            tokens: token ids.
            segment_ids: packed sequences; a position sees the earlier ones of its own segment only.
            positions: index of each position in its sequence, restarting in every segment; by default 0, 1, ..., L - 1.
            deterministic: no dropout on the adapters; otherwise the rng `dropout` is needed.
            prefix: embeddings in front of the tokens', such as projected image features; L = P + T.
        """
        if positions is None:
            length = tokens.shape[1] + (0 if prefix is None else prefix.shape[1])
            positions = jnp.broadcast_to(jnp.arange(length), (len(tokens), length))
        metadata = self.attention_metadata(positions, segment_ids=segment_ids, deterministic=deterministic)
        if self.is_initializing():  # so that the head has parameters whichever method initializes
            self.logits(jnp.zeros((1, 1, self.config.embedding_size), self.precision.compute_dtype))
        return self._run_layers(tokens, metadata, None, prefix).hidden

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
        slots = jnp.arange(cache.read_slots)[None, None]
        mask = None if prefill else (slots <= positions[:, :, None])[:, None]
        state = self._run_layers(tokens, self.attention_metadata(positions, cache_mask=mask), cache)
        hidden = state.hidden
        if logits_at is not None:
            hidden = jnp.take_along_axis(hidden, logits_at[:, None, None], axis=1)
        assert state.cache is not None
        return DecodeOutput(logits=self.logits(hidden), cache=state.cache)

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
            raise ValueError(f"adapters were passed to a {type(self).__name__} built without `lora`")
        if not adapted <= names:
            raise ValueError(
                f"adapters are under {sorted(adapted)}, expected {sorted(names)} (scan_layers={self.scan_layers})"
            )

    def _run_layers(
        self,
        tokens: Int[Array, "B T"],
        metadata: AttentionMetadata,
        cache: KVCache | None,
        prefix: Float[Array, "B P W"] | None = None,
    ) -> LayerState:
        self._check_adapters()
        embedded = self.embed(tokens)
        if prefix is not None:
            embedded = jnp.concatenate([prefix.astype(embedded.dtype), embedded], axis=1)
        state = LayerState(self.add_positions(embedded, metadata.positions), cache)
        layers: Any = self.layers  # pyright: ignore[reportAttributeAccessIssue]  created by the subclass
        if isinstance(layers, nn.Module):
            state, _ = layers(state, jnp.arange(self.config.num_layers), metadata)  # pyright: ignore[reportCallIssue]
        else:
            for index, block in enumerate(layers):
                # A constant, which `KVCacheLayers` needs.
                state, _ = block(state, np.array(index, np.int32), metadata)
        return LayerState(self.final_states(state.hidden), state.cache)


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
