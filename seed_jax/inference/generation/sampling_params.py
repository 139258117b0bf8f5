"""What may be asked of one answer, and the same for a batch as arrays, so that rows may differ without recompiling."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Float, Int

from seed_jax.errors import UserError
from seed_jax.inference.generation.grammar import ImageRule, Rules
from seed_jax.inference.generation.sampling import Sampling
from seed_jax.inference.generation.stop_strings import Stops, StopTables, check_stops
from seed_jax.typing import Leaf

MAX_SEED = 2**32 - 1
# What may end a beam search before its budget, by transformers' names: "heuristic" is its early_stopping=False.
EARLY_STOPPING = ("heuristic", "first", "never")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How one prompt is answered; the defaults take the likeliest token each time (greedy).

    Attributes:
        max_new_tokens: fewer where the model's context ends before.
        temperature: 0 is greedy; otherwise tokens are drawn, or beams where there are several.
        top_k, top_p, min_p: leave out unlikely tokens: all but the k likeliest; the least likely with the probability
            1 - p together; those below p times the likeliest. 0, 1 and 0 leave out none.
        seed: of the draws, 0 to 2**32 - 1.
        stop: strings that end the answer (and are not part of it), not before the images it must have.
        mode, images: see `grammar.ImageRule.of`.
        beams: width of the beam search; 1 is none.
        length_penalty: beams are ranked by log p / length ** penalty.
        early_stopping: "heuristic" stops when the best running beam, at its present length, cannot beat the finished
            ones; "first" as soon as there are `beams` finished ones; "never" looks ahead to the greatest length where
            the penalty favours long answers. (transformers' False, True and "never".)
        guidance_scale: s in log p(token | negative) + s (log p(token | prompt) - log p(token | negative)); 1 is none.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    mode: str = "free"
    images: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: str = "heuristic"
    guidance_scale: float = 1.0

    def __post_init__(self):
        self._check("max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        self._check("temperature", 0 <= self.temperature < math.inf, "a number from 0 on")
        self._check("top_k", self.top_k >= 0, "at least 1, or 0 for all tokens")
        self._check("top_p", 0 < self.top_p <= 1, "a number above 0 and up to 1")
        self._check("min_p", 0 <= self.min_p <= 1, "a number from 0 to 1")
        self._check("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}")
        self._check("beams", self.beams >= 1, "at least 1")
        self._check("length_penalty", math.isfinite(self.length_penalty), "a number")
        self._check("early_stopping", self.early_stopping in EARLY_STOPPING, f"one of {', '.join(EARLY_STOPPING)}")
        self._check("guidance_scale", math.isfinite(self.guidance_scale), "a number")
        check_stops(self.stop)
        _ = self.rule

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"{name} is {getattr(self, name)}, expected {expected}.")

    @property
    def rule(self) -> ImageRule:
        return ImageRule.of(self.mode, self.images)

    @classmethod
    def from_dict(cls, data: dict, where: str) -> "Settings":
        """Build from names and values as they stand in a file; all wrong names and types are reported at once."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        problems = [f"unknown setting {name!r}" for name in data if name not in fields]
        values = {}
        for name in sorted(data.keys() & fields.keys()):
            try:
                values[name] = _typed(data[name], fields[name].default)
            except TypeError:
                problems.append(f"{name} is {data[name]!r}")
        if problems:
            raise UserError(f"{where}: {'; '.join(sorted(problems))}; known are {', '.join(fields)}.")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


def _typed(value: Any, default: Any) -> Any:
    """Return `value` in the type of a field's default; TypeError where it is of another."""
    if isinstance(default, tuple):
        value = [value] if isinstance(value, str) else value
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        value = tuple(value) if fits else value
    elif isinstance(default, float):
        fits = type(value) in (int, float)
        value = float(value) if fits else value
    else:
        fits = type(value) is type(default) or (default is None and type(value) is int)
    if not fits:
        raise TypeError
    return value


@flax.struct.dataclass
class Controls:
    """The settings of a batch's rows."""

    budgets: Int[Leaf, " B"]  # most tokens to generate; 0 leaves a row alone
    sampling: Sampling
    rules: Rules
    guidance: Float[Leaf, " B"]
    length_penalty: Float[Leaf, " B"]
    early_stopping: Int[Leaf, " B"]  # index into EARLY_STOPPING
    stops: Stops | None

    @classmethod
    def of(cls, settings: Sequence[Settings], budgets: Sequence[int], tables: StopTables) -> "Controls":
        def column(name: str, kind: type) -> np.ndarray:
            return np.array([getattr(one, name) for one in settings], kind)

        kinds = {"top_k": np.int32, "seed": np.uint32}
        names = ("temperature", "top_k", "top_p", "min_p", "seed")
        return cls(
            budgets=np.asarray(budgets, np.int32),
            sampling=Sampling(**{name: column(name, kinds.get(name, np.float32)) for name in names}),
            rules=Rules.of([one.rule for one in settings]),
            guidance=column("guidance_scale", np.float32),
            length_penalty=column("length_penalty", np.float32),
            early_stopping=np.array([EARLY_STOPPING.index(one.early_stopping) for one in settings], np.int32),
            stops=tables.of([one.stop for one in settings]),
        )
