"""The memory that SEED-LLaMA needs on one device, computed from the sizes of its models before anything is loaded.

Weights and KV cache are exact. Temporary buffers of programs are an upper estimate of the largest arrays that exist at
one time; `benchmarks/generation_memory.py` compares it with the compiler's figures.
"""

import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint import kinds, model_dir
from seed_jax.checkpoint.kinds import LANGUAGE_MODELS, ModelKind
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE
from seed_jax.errors import UserError
from seed_jax.inference import weight_loading
from seed_jax.inference.drawing.drawer import decoder_class
from seed_jax.inference.drawing.request import DecoderConfig
from seed_jax.inference.generation.batching import bucket
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.seed_llama import LoadConfig
from seed_jax.models import language_models
from seed_jax.models.diffusion import DECODERS
from seed_jax.models.language_models import read_sizes
from seed_jax.models.nn.attention import QUERY_BLOCK_SIZE
from seed_jax.models.nn.decoder_only import DecoderOnlyConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.precision import Precision
from seed_jax.sharding import unbox
from seed_jax.sizes import format_memory, parse_size
from seed_jax.typing import Tree

GIB = 2**30
COMFORTABLE_FRACTION = 0.7  # of a device's memory, below which a plan needs no mention


@dataclasses.dataclass(frozen=True)
class Workload:
    """The largest batch to answer.

    Attributes:
        prompts: requests at a time.
        beams: beams per request.
        guided: whether guidance doubles the sequences.
        prompt_length: tokens of a prompt.
        new_tokens: tokens of an answer.
        parallel: whether the tokens of an image are decoded in parallel.
    """

    prompts: int = 1
    beams: int = 1
    guided: bool = False
    prompt_length: int = 512
    new_tokens: int = 512
    parallel: bool = False

    @classmethod
    def covering(cls, params: Sequence[SamplingParams], prompts: int = 1) -> "Workload":
        """Return a batch that needs at least as much memory as one of any of the requests.

        Args:
            params: decoding options of the requests, at least one.
            prompts: requests at a time.
        """
        most = max(params, key=lambda one: one.beams * (1 + one.guided))
        return cls(
            prompts,
            most.beams,
            most.guided,
            new_tokens=max(one.max_new_tokens for one in params),
            parallel=any(one.parallel_decoding for one in params),
        )

    @property
    def tokens_per_step(self) -> int:
        """Return how many tokens of a sequence a decode step runs."""
        return CODES_PER_IMAGE + 2 if self.parallel else 1

    @property
    def num_branches(self) -> int:
        return 2 if self.guided else 1

    @property
    def num_sequences(self) -> int:
        """Return how many sequences the model decodes at a time."""
        return bucket(self.prompts, smallest=1) * self.beams * self.num_branches

    def num_slots(self, config: DecoderOnlyConfig) -> int:
        """Return the length of the KV cache."""
        longest = bucket(self.prompt_length, config.max_length) + bucket(self.new_tokens, config.max_length)
        return min(longest, config.max_length)


@dataclasses.dataclass(frozen=True)
class SlotPoolSize:
    """The slots of a serving engine (`seed_jax.serving.engine`), which hold as many requests as they are.

    Attributes:
        slots: requests at a time.
        length: positions of a slot, prompt and answer together.
        prefill_chunk: prompt tokens that are prefilled at a time; also the size of a block of the prefix cache.
        prefix_cache_blocks: blocks of the prefix cache.
        beams: of the largest beam search beside the slots; 1: none.
    """

    slots: int
    length: int
    prefill_chunk: int
    prefix_cache_blocks: int = 0
    beams: int = 1

    @property
    def decode_workload(self) -> Workload:
        """Return the batch that needs as much memory as the slots while they decode."""
        return Workload(prompts=self.slots, prompt_length=self.length, new_tokens=self.length)

    @property
    def beam_workload(self) -> Workload:
        """Return the largest beam search."""
        return Workload(beams=self.beams, prompt_length=self.length, new_tokens=self.length)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Memory in bytes by name.

    Attributes:
        resident: what is allocated all the time.
        temporary: what each program needs while it runs; one program runs at a time.
        remedy: what to change if the memory does not suffice.
    """

    resident: dict[str, int]
    temporary: dict[str, int]
    remedy: str = (
        "use --quantize int8 or int4, fewer prompts or beams at a time, a smaller --max-new-tokens, or draw later with "
        "`seed-jax detokenize`"
    )

    @property
    def peak(self) -> int:
        return sum(self.resident.values()) + max(self.temporary.values(), default=0)

    def lines(self) -> list[str]:
        """Return a table, one line per entry."""
        rows = {
            **self.resident,
            **{f"temporary: {name}": size for name, size in self.temporary.items()},
            "peak": self.peak,
        }
        return [f"{name:<40} {format_memory(size):>12}" for name, size in rows.items()]

    def fits_comfortably(self, limit: int | None) -> bool:
        """Return whether the plan takes so little of `limit` bytes that it need not be reported."""
        return limit is None or self.peak <= COMFORTABLE_FRACTION * limit

    def report(self, workload: str, limit: str | None, *, show: bool) -> None:
        """Log the plan on request, or if it is tight.

        Args:
            workload: what it is the plan for.
            limit: memory such as "16GiB"; None takes the device's.
            show: log it in any case.
        """
        if show or not self.fits_comfortably(available_memory(limit)):
            logging.info("Memory plan for %s:\n  %s", workload, "\n  ".join(self.lines()))

    def check(self, limit: int | None) -> None:
        """Raise UserError if the peak exceeds `limit` bytes; None accepts any plan."""
        if limit is not None and self.peak > limit:
            parts = ", ".join(f"{name} {format_memory(size)}" for name, size in self.resident.items())
            temporary = format_memory(max(self.temporary.values(), default=0))
            raise UserError(
                f"This needs {format_memory(self.peak)} of memory, but {format_memory(limit)} are available ({parts}, "
                f"temporary buffers up to {temporary}): {self.remedy}."
            )


def plan_memory(
    llama: DecoderOnlyConfig,
    precision: Precision,
    workload: Workload | SlotPoolSize,
    *,
    quantize: str | None = None,
    tokenizer: SeedTokenizerConfig | None = None,
    quantize_vit: str | None = None,
    num_images: int = 1,
    decoder: DecoderConfig | None = None,
    num_drawn: int = 1,
) -> MemoryPlan:
    """Plan the memory of a language model, and of an image tokenizer and a decoder if they are given.

    Args:
        llama: sizes of the language model.
        precision: its dtypes.
        workload: the largest batch, or the slots of a serving engine.
        quantize: quantization of the language model's kernels.
        tokenizer: sizes of the image tokenizer.
        quantize_vit: quantization of its ViT's kernels.
        num_images: images that are encoded at a time.
        decoder: sizes of the decoder.
        num_drawn: images that are drawn at a time.
    """
    weights = tree_bytes(llama_weights(llama, precision, quantize))
    if isinstance(workload, SlotPoolSize):
        plan = plan_slots(llama, precision, workload, weights, copies_cache=jax.default_backend() == "cpu")
    else:
        plan = MemoryPlan(
            {"language model": weights, "KV cache": kv_cache_bytes(llama, precision, workload)},
            {"prefill": prefill_bytes(llama, workload), "decode": decode_bytes(llama, workload)},
        )
    resident, temporary = plan.resident, plan.temporary
    if tokenizer is not None:
        resident["image tokenizer"] = tree_bytes(tokenizer_weights(tokenizer, quantize_vit))
        temporary["encoding images"] = encode_bytes(tokenizer, num_images)
    if decoder is not None:
        resident["decoder"] = tree_bytes(decoder_weights(decoder, precision))
        temporary["drawing"] = draw_bytes(decoder, num_drawn)
    return plan


def plan_slots(
    config: DecoderOnlyConfig,
    precision: Precision,
    pool: SlotPoolSize,
    weights: int,
    *,
    batch_shards: int = 1,
    tensor_shards: int = 1,
    copies_cache: bool = False,
) -> MemoryPlan:
    """Plan the memory of a language model with the slots of a serving engine, on one device.

    Args:
        config: sizes of the language model.
        precision: its dtypes.
        pool: the slots.
        weights: bytes of its parameters on the device.
        batch_shards: devices over which the mesh shards slots.
        tensor_shards: devices over which the mesh shards key-value heads.
        copies_cache: whether decode chunks work on a copy of the keys and values, as on a CPU.
    """
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_size * precision.compute_dtype.itemsize
    scratch = 1  # a block for chunks that are not stored
    blocks = (pool.prefix_cache_blocks + scratch) * pool.prefill_chunk
    chunk = Workload(prompt_length=pool.prefill_chunk, new_tokens=1)
    row = 2 * pool.length * config.num_kv_heads * config.head_size  # one layer of a slot, in float32
    scores = 3 * config.num_heads * pool.prefill_chunk * pool.length
    resident = {
        "language model": weights,
        "KV-cache pool": pool.slots * pool.length * per_position // (batch_shards * tensor_shards),
        "prefix cache": blocks * per_position // tensor_shards,
    }
    temporary = {
        "prefill of a chunk": prefill_bytes(config, chunk) + 4 * (2 * row + scores),
        "decode": decode_bytes(config, pool.decode_workload) // batch_shards,
    }
    if copies_cache:
        temporary["decode"] += resident["KV-cache pool"]
    if pool.beams > 1:
        beams = pool.beam_workload
        search = kv_cache_bytes(config, precision, beams) // tensor_shards
        resident["beam search"] = search + max(prefill_bytes(config, beams), decode_bytes(config, beams))
    remedy = "use fewer slots, a shorter context, a smaller prefix cache, fewer beams, or quantized weights"
    return MemoryPlan(resident, temporary, remedy)


def plan_directories(
    config: LoadConfig, workload: Workload | SlotPoolSize, *, num_images: int = 0, num_drawn: int = 1
) -> MemoryPlan:
    """Plan the memory of model directories, of which only `config.json` is read.

    Args:
        config: the models.
        workload: the largest batch, or the slots of a serving engine.
        num_images: images that are encoded at a time; without images and decoder, no image tokenizer is loaded.
        num_drawn: images that are drawn at a time.
    """
    tokenizer = None
    if config.tokenizer is not None and (num_images > 0 or config.decoder is not None):
        _, sizes, where = _read_sizes(config.tokenizer, ModelKind.IMAGE_TOKENIZER)
        tokenizer = SeedTokenizerConfig.from_dict(sizes, where)
    decoder = None
    if config.decoder is not None:
        kind, sizes, where = _read_sizes(config.decoder, kinds.DECODERS)
        config_class, _ = DECODERS[kind]
        decoder = config_class.from_dict(sizes, where)
    return plan_memory(
        read_sizes(*_read_sizes(config.model, LANGUAGE_MODELS)),
        config.precision,
        workload,
        quantize=config.quantize,
        tokenizer=tokenizer,
        quantize_vit=config.quantize_vit,
        num_images=num_images,
        decoder=decoder,
        num_drawn=num_drawn,
    )


def check_directories(
    config: LoadConfig,
    workload: Workload,
    *,
    num_images: int = 0,
    draws: bool = False,
    limit: str | None = None,
    show: bool = False,
) -> None:
    """Check that the models of a `LoadConfig` fit into the memory; log the plan on request or if it is tight.

    Args:
        config: the models.
        workload: the largest batch.
        num_images: images that are encoded at a time.
        draws: whether the image decoder will be loaded.
        limit: memory such as "16GiB"; None takes the device's.
        show: log the plan in any case.

    Raises:
        UserError: the models need more than the limit.
    """
    planned = dataclasses.replace(config, decoder=config.decoder if draws else None)
    plan = plan_directories(planned, workload, num_images=num_images)
    plan.report(f"prompts of up to {workload.prompt_length} tokens", limit, show=show)
    plan.check(available_memory(limit))


def _read_sizes(directory: Path, kind: str | Sequence[str]) -> tuple[str, dict[str, Any], str]:
    """Return kind and sizes of a model directory, and the path of its config.json for error messages."""
    folder, config = model_dir.read_config(directory, kind)
    return config["kind"], config.get("sizes", {}), str(folder / model_dir.CONFIG)


def kv_cache_bytes(config: DecoderOnlyConfig, precision: Precision, workload: Workload) -> int:
    values_per_slot = 2 * config.num_layers * config.num_kv_heads * config.head_size
    return workload.num_sequences * workload.num_slots(config) * values_per_slot * precision.compute_dtype.itemsize


def prefill_bytes(config: DecoderOnlyConfig, workload: Workload) -> int:
    num_sequences = bucket(workload.prompts, smallest=1) * workload.num_branches
    length = bucket(workload.prompt_length, config.max_length)
    scores = 3 * config.num_heads * min(length, QUERY_BLOCK_SIZE) * length
    activations = length * (3 * config.intermediate_size + 10 * config.hidden_size)
    cache_copy = kv_cache_bytes(config, Precision(), workload) // 2  # keys or values in another memory layout
    kernel = _dequantized_bytes(config.hidden_size, config.intermediate_size)
    return 4 * num_sequences * (scores + activations) + cache_copy + kernel


def decode_bytes(config: DecoderOnlyConfig, workload: Workload) -> int:
    slots = workload.num_slots(config)
    logits = 8 * config.vocab_size * (workload.beams if workload.beams > 1 else 1)
    activations = 3 * config.intermediate_size + 10 * config.hidden_size + 3 * config.num_heads * slots
    layer_cache = 2 * slots * config.num_kv_heads * config.head_size
    reordered_cache = kv_cache_bytes(config, Precision(), workload) if workload.beams > 1 else 0
    kernel = _dequantized_bytes(config.hidden_size, config.intermediate_size)
    per_token = workload.tokens_per_step * (logits + activations)
    return 4 * workload.num_sequences * (per_token + layer_cache) + reordered_cache + kernel


def encode_bytes(config: SeedTokenizerConfig, num_images: int) -> int:
    vit = config.vit.blocks
    patches = (config.image_size // config.vit.patch_size) ** 2 + 1
    activations = patches * (3 * vit.mlp_width + 10 * vit.width) + 3 * vit.heads * patches**2
    return 4 * max(num_images, 1) * activations + _dequantized_bytes(vit.width, vit.mlp_width)


def draw_bytes(config: DecoderConfig, num_images: int = 1) -> int:
    """Return the larger of the autoencoder's last resolution, of one image, and the guided UNet's first one, of all."""
    vae, unet = config.vae, config.unet
    pixels, latents = config.image_size**2, unet.sample_size**2
    decoding = pixels * 6 * vae.block_channels[min(1, len(vae.block_channels) - 1)]
    scores = 3 * unet.num_heads[0] * min(latents, QUERY_BLOCK_SIZE) * latents
    denoising = 2 * (latents * 40 * unet.block_channels[0] + scores)
    return 4 * max(decoding, num_images * denoising)


def _dequantized_bytes(inputs: int, outputs: int) -> int:
    """Return the size of a quantized kernel in float32, where the matmul cannot dequantize it on the fly."""
    return 4 * inputs * outputs


def available_memory(limit: str | None) -> int | None:
    """Return a limit such as "16GiB" in bytes; without one, the memory of the first device."""
    return parse_size(limit) if limit else device_memory()


def device_memory() -> int | None:
    """Return the memory of the first device in bytes (on a CPU that of the machine); None if it is unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return (device.memory_stats() or {}).get("bytes_limit")


def tree_bytes(tree: Tree) -> int:
    """Return the bytes of all arrays of a tree, abstract ones too."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def llama_weights(config: DecoderOnlyConfig, precision: Precision, quantize: str | None) -> Tree:
    """Return the abstract parameters as `Generator` holds them."""
    shapes = unbox(language_models.abstract_params(config, scan_layers=False))
    dtype_of = weight_loading.matrix_dtype(precision.compute_dtype)
    return weight_loading.abstract(shapes, dtype_of, weight_loading.llama_schemes(quantize))


def tokenizer_weights(config: SeedTokenizerConfig, quantize: str | None) -> Tree:
    """Return the abstract parameters as `ImageTokenizer` holds them in float32."""
    return weight_loading.abstract(
        abstract_params(config), weight_loading.stored_dtype, weight_loading.vit_schemes(quantize)
    )


def decoder_weights(config: DecoderConfig, precision: Precision) -> Tree:
    """Return the abstract parameters as `Drawer` holds them, with the autoencoder in float32."""
    dtypes = {"unet": precision.compute_dtype, "text": precision.compute_dtype}

    def with_dtype(tree: Tree, dtype: Any) -> Tree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)

    shapes = unbox(decoder_class(config)(config).abstract_params())
    return {name: with_dtype(tree, dtypes.get(name, jnp.float32)) for name, tree in shapes.items()}
