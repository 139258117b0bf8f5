"""Which quantization fits a device: the memory plan of every choice, and the most accurate one that fits."""

import dataclasses
from collections.abc import Callable

from seed_jax.inference.memory_plan import MemoryPlan, Workload, device_memory, plan_directories, plan_memory
from seed_jax.inference.seed_llama import LoadConfig
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.precision import Precision

# Of the language model and of the image tokenizer's ViT, the most accurate first; a quantized ViT may change codes.
QUANTIZATIONS = ((None, None), ("int8", None), ("int8", "int8"), ("int4", None), ("int4", "int4"))
RELEASED = {"SEED-LLaMA 8B": LlamaConfig.seed_8b, "SEED-LLaMA 14B": LlamaConfig.seed_14b}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to load a model.

    Attributes:
        quantize: quantization of the language model; None keeps `dtype`.
        quantize_vit: quantization of the image tokenizer's ViT.
        dtype: compute dtype.
        plan: the memory that it needs.
    """

    quantize: str | None
    quantize_vit: str | None
    dtype: str
    plan: MemoryPlan

    @property
    def name(self) -> str:
        return (self.quantize or self.dtype) + (f", ViT {self.quantize_vit}" if self.quantize_vit else "")

    @property
    def options(self) -> str:
        """Return the options of `seed-jax chat` and `generate` for this choice."""
        named = {"--quantize": self.quantize, "--quantize-vit": self.quantize_vit}
        return " ".join(f"{option} {value}" for option, value in named.items() if value)

    def fits(self, limit: int | None) -> bool:
        """Return whether the plan fits into `limit` bytes; an unknown limit fits everything."""
        return limit is None or self.plan.peak <= limit


def choices(config: LoadConfig, workload: Workload | None = None, *, num_images: int = 1) -> list[Choice]:
    """Plan model directories with every quantization; only their `config.json` is read.

    Args:
        config: the models; its own quantization is ignored.
        workload: the largest batch; by default one prompt.
        num_images: images that are encoded at a time.
    """
    config = config.resolve()

    def plan(quantize: str | None, quantize_vit: str | None) -> MemoryPlan:
        quantized = dataclasses.replace(config, quantize=quantize, quantize_vit=quantize_vit)
        return plan_directories(quantized, workload or Workload(), num_images=num_images)

    return _choices(config.precision, plan)


def released_choices(llama: LlamaConfig, *, dtype: str, decoder: bool) -> list[Choice]:
    """Plan a language model of a released size with the released image tokenizer and, where asked for, decoder."""
    precision = Precision(dtype, dtype)

    def plan(quantize: str | None, quantize_vit: str | None) -> MemoryPlan:
        return plan_memory(
            llama, precision, Workload(), quantize=quantize, tokenizer=SeedTokenizerConfig(), quantize_vit=quantize_vit,
            decoder=UnclipConfig.full() if decoder else None,
        )  # fmt: skip

    return _choices(precision, plan)


def choose_quantization(config: LoadConfig, limit: int | None = None, *, num_images: int = 1) -> Choice:
    """Return the most accurate choice with which model directories fit on this machine's device.

        choice = choose_quantization(LoadConfig(Path("models/8b")))
        model = SeedLlama.load("models/8b", quantize=choice.quantize, quantize_vit=choice.quantize_vit)

    Args:
        config: the models.
        limit: memory in bytes; by default that of the first device.
        num_images: images that are encoded at a time.

    Raises:
        UserError: none fits; the message names what the smallest one needs.
    """
    limit = device_memory() if limit is None else limit
    planned = choices(config, num_images=num_images)
    for choice in planned:
        if choice.fits(limit):
            return choice
    planned[-1].plan.check(limit)
    raise AssertionError("unreachable: the last plan does not fit")


def table(planned: list[Choice], limit: int | None) -> list[str]:
    """Return one line per choice: what it needs, and whether that fits."""
    gib = 2**30
    available = "memory of the device is unknown" if limit is None else f"of {limit / gib:.1f} GiB"
    return [
        f"{choice.name:14} {choice.plan.peak / gib:7.2f} GiB {available}"
        + ("" if limit is None else ": fits" if choice.fits(limit) else ": does not fit")
        for choice in planned
    ]


def _choices(precision: Precision, plan: Callable[[str | None, str | None], MemoryPlan]) -> list[Choice]:
    return [Choice(*pair, precision.compute, plan(*pair)) for pair in QUANTIZATIONS]
