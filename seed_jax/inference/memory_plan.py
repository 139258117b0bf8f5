"""What SEED-LLaMA will take on one device, worked out from its sizes before anything is loaded.

Weights and the cache of keys and values are exact. What programs need while they run is an estimate from above of the
largest arrays that exist at one time, compared with the compiler's own figures by `benchmarks/generation_memory.py`.
"""

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.inference import image_tokenizer, weight_loading
from seed_jax.inference.drawing import drawer
from seed_jax.inference.generation.batching import bucket
from seed_jax.inference.seed_llama import Parts
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.nn.attention import QUERY_BLOCK
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.precision import Precision
from seed_jax.sharding import unbox


@dataclasses.dataclass(frozen=True)
class Workload:
    """The largest batch that is to be answered: prompts, beams of each (twice as many rows if guided), lengths."""

    prompts: int = 1
    beams: int = 1
    guided: bool = False
    prompt_length: int = 512
    new_tokens: int = 512

    @property
    def rows(self) -> int:
        return bucket(self.prompts, smallest=1) * self.beams * (2 if self.guided else 1)

    def slots(self, config: LlamaConfig) -> int:
        """Return the length of the cache."""
        longest = bucket(self.prompt_length, config.max_length) + bucket(self.new_tokens, config.max_length)
        return min(longest, config.max_length)


def cache_size(config: LlamaConfig, precision: Precision, workload: Workload) -> int:
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_size
    return workload.rows * workload.slots(config) * numbers * precision.compute_dtype.itemsize


def _unpacked(*kernel: int) -> int:
    """Return what a rounded kernel takes while it is multiplied by, where the product cannot unpack it on its way."""
    return 4 * int(np.prod(kernel))


def reading(config: LlamaConfig, work: Workload) -> int:
    rows = bucket(work.prompts, smallest=1) * (2 if work.guided else 1)
    length = bucket(work.prompt_length, config.max_length)
    scores = 3 * config.num_heads * min(length, QUERY_BLOCK) * length
    states = length * (3 * config.intermediate_size + 10 * config.hidden_size)
    copies = cache_size(config, Precision(), work) // 2  # of keys or of values, while they are laid out
    return 4 * rows * (scores + states) + copies + _unpacked(config.hidden_size, config.intermediate_size)


def generating(config: LlamaConfig, work: Workload) -> int:
    scores = 8 * config.vocab_size * (work.beams if work.beams > 1 else 1)
    states = 3 * config.intermediate_size + 10 * config.hidden_size + 3 * config.num_heads * work.slots(config)
    one_layer = 2 * work.slots(config) * config.num_kv_heads * config.head_size
    beams = cache_size(config, Precision(), work) if work.beams > 1 else 0  # the cache in its new order
    return (
        4 * work.rows * (scores + states + one_layer) + beams + _unpacked(config.hidden_size, config.intermediate_size)
    )


def encoding(config: SeedTokenizerConfig, pictures: int) -> int:
    vit = config.vit.blocks
    patches = (config.image_size // config.vit.patch_size) ** 2 + 1
    states = patches * (3 * vit.mlp_width + 10 * vit.width) + 3 * vit.heads * patches**2
    return 4 * max(pictures, 1) * states + _unpacked(vit.width, vit.mlp_width)


def drawing(config: UnclipConfig) -> int:
    """Return the larger of the autoencoder's last resolution and the guided UNet's first one, for one picture."""
    vae, unet = config.vae, config.unet
    pixels, latents = config.image_size**2, unet.sample_size**2
    decoding = pixels * 6 * vae.block_channels[min(1, len(vae.block_channels) - 1)]
    scores = 3 * unet.num_heads[0] * min(latents, QUERY_BLOCK) * latents
    denoising = 2 * (latents * 40 * unet.block_channels[0] + scores)
    return 4 * max(decoding, denoising)


GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes by name: what is there all the time, and what programs need while they run, one at a time."""

    kept: dict[str, int]
    working: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.kept.values()) + max(self.working.values(), default=0)

    def lines(self) -> list[str]:
        rows = [*self.kept.items(), *((f"while {name}", size) for name, size in self.working.items())]
        return [*(f"{name:<40} {size / GIB:7.2f} GiB" for name, size in rows),
                f"{'at most at one time':<40} {self.total / GIB:7.2f} GiB"]  # fmt: skip

    def check(self, limit: int | None) -> None:
        """Refuse what does not fit into `limit` bytes."""
        if limit is not None and self.total > limit:
            parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.kept.items())
            raise UserError(
                f"This needs {self.total / GIB:.2f} GiB of memory but there are {limit / GIB:.2f} GiB ({parts}, and up "
                f"to {max(self.working.values(), default=0) / GIB:.2f} while running): use --quantize int8 or int4, "
                "fewer prompts or beams at a time, shorter ones, or leave the decoder to `seed-jax detokenize`."
            )


def plan(
    llama: LlamaConfig,
    precision: Precision,
    workload: Workload,
    *,
    quantize: str | None = None,
    tokenizer: SeedTokenizerConfig | None = None,
    quantize_vit: str | None = None,
    pictures: int = 1,
    decoder: UnclipConfig | None = None,
) -> MemoryPlan:
    """Return the plan for a language model, and for an image tokenizer and a decoder where they are given."""
    kept = {
        "language model": size_of(llama_weights(llama, precision, quantize)),
        "keys and values": cache_size(llama, precision, workload),
    }
    running = {"reading prompts": reading(llama, workload), "generating": generating(llama, workload)}
    if tokenizer is not None:
        kept["image tokenizer"] = size_of(tokenizer_weights(tokenizer, quantize_vit))
        running["encoding pictures"] = encoding(tokenizer, pictures)
    if decoder is not None:
        kept["decoder"] = size_of(decoder_weights(decoder, precision))
        running["drawing"] = drawing(decoder)
    return MemoryPlan(kept, running)


def plan_parts(parts: Parts, workload: Workload, *, pictures: int = 0) -> MemoryPlan:
    """Return the plan for model directories, of which only `config.json` is read; without `pictures` no tokenizer."""
    llama, folder, named = _read(parts.model, "llama", LlamaConfig)
    where = parts.tokenizer or (folder / named["image_tokenizer"] if named.get("image_tokenizer") else None)
    needed = where is not None and (pictures > 0 or parts.decoder is not None)
    tokenizer = _read(where, image_tokenizer.KIND, SeedTokenizerConfig)[0] if needed else None
    decoder = _read(parts.decoder, drawer.KIND, UnclipConfig)[0] if parts.decoder else None
    rounds = {"quantize": parts.quantize, "quantize_vit": parts.quantize_vit}
    return plan(llama, parts.precision, workload, **rounds, tokenizer=tokenizer, pictures=pictures, decoder=decoder)


def _read(directory: Any, kind: str, sizes: Any) -> tuple[Any, Any, dict[str, Any]]:
    folder, config = model_dir.read_config(directory, kind)
    return sizes.from_dict(config.get("sizes", {}), str(folder / model_dir.CONFIG)), folder, config


def device_memory() -> int | None:
    """Return the bytes of the first device, on a CPU those of the machine; None where nobody says."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return (device.memory_stats() or {}).get("bytes_limit")


def parse_size(text: str) -> int:
    """Read "16GiB", "16G" or a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise UserError(f"{text!r} is no amount of memory: expected a number with a unit, such as 16GiB.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def size_of(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def llama_weights(config: LlamaConfig, precision: Precision, quantize: str | None) -> dict[str, Any]:
    """Return the shapes of the parameters as `Generator` holds them."""
    model = Llama(config, scan=False)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    choose = weight_loading.llama_schemes(quantize) if quantize else lambda path: None
    return weight_loading.abstract(shapes, weight_loading.matrices(precision.compute_dtype), choose)


def tokenizer_weights(config: SeedTokenizerConfig, quantize: str | None) -> dict[str, Any]:
    """Return the shapes of the parameters as `ImageTokenizer` holds them in float32."""
    choose: Callable = weight_loading.vit_schemes(quantize) if quantize else lambda path: None
    return weight_loading.abstract(abstract_params(config), lambda path: None, choose)


def decoder_weights(config: UnclipConfig, precision: Precision) -> dict[str, Any]:
    """Return the shapes of the parameters as `Drawer` holds them, the autoencoder in float32."""
    shapes = unbox(jax.eval_shape(Unclip(config, precision).init, jax.random.key(0)))
    formats = {"unet": precision.compute_dtype, "text": precision.compute_dtype}
    return {
        name: jax.tree.map(
            lambda leaf, name=name: jax.ShapeDtypeStruct(leaf.shape, formats.get(name, jnp.float32)), part
        )
        for name, part in shapes.items()
    }
