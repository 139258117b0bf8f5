"""Decoding options of one request: `SamplingParams` and the image constraint that it implies.

This module imports neither JAX nor NumPy: the command line reads the defaults before anything heavy is loaded.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from seed_jax.errors import UserError

MAX_SEED = 2**32 - 1
MAX_FLOAT = 3e38  # computed in float32
MAX_STOP_BYTES = 1024  # of all stop strings of a request together
MODES = ("free", "image", "some", "text", "none")
UNLIMITED = 2**20
# Conditions that end a beam search before max_new_tokens. In transformers' terms: early_stopping=False, True, "never".
EARLY_STOPPING = ("heuristic", "first", "never")
LENGTH_PENALTY_ON = ("answer", "sequence")


@dataclasses.dataclass(frozen=True)
class ImageConstraint:
    """How many images one answer contains, and where the first one is.

    Attributes:
        min_images: lower bound; an image that the prompt began does not count.
        max_images: upper bound.
        image_first: the answer begins with an image.
        enforced: False disables the grammar: any token may follow any other, as in the original code.
    """

    min_images: int = 0
    max_images: int = UNLIMITED
    image_first: bool = False
    enforced: bool = True

    @classmethod
    def from_mode(cls, mode: str, num_images: int | None = None) -> "ImageConstraint":
        """Build the constraint called `mode`.

        Args:
            mode: "free" text and images; "image" the answer begins with an image; "some" at least one image; "text" no
                image; "none" no grammar.
            num_images: exact number of images; only with the modes "free" and "image".

        Raises:
            UserError: the mode is unknown, or `num_images` contradicts it.
        """
        if mode not in MODES:
            raise UserError(f"Unknown image mode {mode!r}: expected one of {', '.join(MODES)}.")
        if num_images is not None:
            if mode not in ("free", "image") or num_images < (mode == "image"):  # the first image counts
                raise UserError(f"num_images is {num_images}, which contradicts the image mode {mode!r}.")
            return cls(min_images=num_images, max_images=num_images, image_first=mode == "image")
        return {
            "free": cls(),
            "image": cls(min_images=1, image_first=True),
            "some": cls(min_images=1),
            "text": cls(max_images=0),
            "none": cls(enforced=False),
        }[mode]


SPEED_OPTIONS = ("parallel_decoding",)  # fields that change the speed of an answer, not the answer


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Decoding options of one request; the defaults decode greedily.

    Attributes:
        max_new_tokens: upper bound of the answer's length; the context length may end it earlier.
        temperature: 0 decodes greedily; otherwise tokens (or beams) are sampled.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: nucleus sampling: keep the smallest set of tokens whose cumulative probability reaches p; 1 keeps all.
        min_p: keep tokens whose probability is at least p times that of the most likely token; 0 keeps all.
        seed: seed of this request's random numbers, 0 to 2**32 - 1.
        stop: strings that end the answer and are not part of it, or one such string; stored as a tuple. They have no
            effect before the required images.
        mode: image mode, see `ImageConstraint.from_mode`.
        num_images: exact number of images, see `ImageConstraint.from_mode`.
        beams: width of the beam search; 1 disables it.
        length_penalty: finished beams are ranked by log p / length ** length_penalty.
        length_penalty_on: which length: "answer" counts the generated tokens, EOS included, as transformers 5;
            "sequence" counts prompt and answer without EOS, as transformers 4.30.2, the original's version.
        early_stopping: "heuristic" stops when the best running beam, at its present length, cannot beat the finished
            beams; "first" stops as soon as `beams` beams are finished; "never" assumes the maximum length where the
            penalty favours long answers.
        guidance_scale: classifier-free guidance with scale s:
            log p(token | negative) + s (log p(token | prompt) - log p(token | negative)); 1 disables it.
        parallel_decoding: decode the codes of an image in parallel (Jacobi decoding): the same tokens in fewer, larger
            forward passes.

    Raises:
        UserError: a value is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: str | Sequence[str] = ()
    mode: str = "free"
    num_images: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    length_penalty_on: str = "answer"
    early_stopping: str = "heuristic"
    guidance_scale: float = 1.0
    parallel_decoding: bool = False

    def __post_init__(self):
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        self._check("max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        self._check("temperature", 0 <= self.temperature <= MAX_FLOAT, f"0 to {MAX_FLOAT}")
        self._check("top_k", self.top_k >= 0, "at least 1, or 0 for all tokens")
        self._check("top_p", 0 < self.top_p <= 1, "a number above 0 and at most 1")
        self._check("min_p", 0 <= self.min_p <= 1, "a number from 0 to 1")
        self._check("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}")
        self._check("beams", self.beams >= 1, "at least 1")
        self._check("length_penalty", abs(self.length_penalty) <= MAX_FLOAT, f"at most {MAX_FLOAT} in size")
        self._check(
            "length_penalty_on", self.length_penalty_on in LENGTH_PENALTY_ON, f"one of {', '.join(LENGTH_PENALTY_ON)}"
        )
        self._check("early_stopping", self.early_stopping in EARLY_STOPPING, f"one of {', '.join(EARLY_STOPPING)}")
        self._check("guidance_scale", abs(self.guidance_scale) <= MAX_FLOAT, f"at most {MAX_FLOAT} in size")
        self._check("parallel_decoding", not self.parallel_decoding or self.beams == 1, "False with more than one beam")
        _ = self.image_constraint

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise UserError(f"{name} is {getattr(self, name)}, expected {expected}.")

    @property
    def image_constraint(self) -> ImageConstraint:
        return ImageConstraint.from_mode(self.mode, self.num_images)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(self.stop)

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the options that are set but have no effect, because they need sampling or a beam search."""
        names = [name for name in ("top_k", "top_p", "min_p") if self.temperature == 0]
        names += [name for name in ("length_penalty", "length_penalty_on", "early_stopping") if self.beams == 1]
        return tuple(name for name in names if getattr(self, name) != getattr(type(self), name))

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> "SamplingParams":
        """Build from the names and values of a JSON object.

        Args:
            data: field names and values.
            where: file and record, for the error message.

        Raises:
            UserError: lists every unknown name and every value of a wrong type at once.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        problems = [f"unknown sampling parameter {name!r}" for name in data if name not in fields]
        values = {}
        for name in sorted(data.keys() & fields.keys()):
            try:
                values[name] = _typed(data[name], fields[name].default)
            except (TypeError, OverflowError):  # OverflowError: an integer beyond float
                problems.append(f"{name} is {data[name]!r}")
        if problems:
            raise UserError(f"{where}: {'; '.join(sorted(problems))}; known parameters are {', '.join(fields)}.")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


def _stop_strings(stop: Any) -> tuple[str, ...]:
    """Return the stop strings as a tuple.

    Raises:
        UserError: an item is empty, not a string or not encodable, or there are more than MAX_STOP_BYTES bytes in all.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    if not all(isinstance(string, str) for string in strings):
        raise UserError(f"stop is {stop!r}, expected a string or a sequence of strings.")
    if not all(strings):
        raise UserError("A stop string is empty: give at least one character.")
    try:
        size = sum(len(string.encode()) for string in strings)
    except UnicodeEncodeError:
        raise UserError(f"stop is {stop!r}, which contains half a surrogate pair: give whole characters.") from None
    if size > MAX_STOP_BYTES:
        raise UserError(f"The stop strings have more than {MAX_STOP_BYTES} bytes in all: give shorter or fewer ones.")
    return strings


def _typed(value: Any, default: Any) -> Any:
    """Convert `value` to the type of a field's default; TypeError if it is of another type."""
    if isinstance(default, tuple):
        strings = [value] if isinstance(value, str) else value
        if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
            raise TypeError
        return tuple(strings)
    if isinstance(default, float):
        if type(value) not in (int, float):
            raise TypeError
        return float(value)
    if type(value) is not type(default) and not (default is None and type(value) is int):
        raise TypeError
    return value
