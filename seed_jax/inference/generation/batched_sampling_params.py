"""The sampling parameters of a batch as arrays, so that requests may differ without recompiling."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Bool, Float, Int

from seed_jax.inference.generation.grammar import BatchedImageConstraints
from seed_jax.inference.generation.sampling import SamplerParams
from seed_jax.inference.generation.sampling_params import EARLY_STOPPING, SamplingParams
from seed_jax.inference.generation.stop_strings import StopAutomata, StopStringCompiler
from seed_jax.typing import Leaf

_MAX_INT32 = np.iinfo(np.int32).max


@flax.struct.dataclass
class BatchedSamplingParams:
    """The `SamplingParams` of a batch.

    Attributes:
        max_new_tokens: token budget of each sequence; 0 leaves it untouched (padding of the batch).
        penalize_sequence: whether the length penalty counts the prompt too.
        early_stopping: index into EARLY_STOPPING.
        stop: None if no request has stop strings.
        draft: with parallel decoding, the first draft of the codes of each sequence's images, as token ids.
    """

    max_new_tokens: Int[Leaf, " B"]
    sampler: SamplerParams
    image_constraints: BatchedImageConstraints
    guidance_scale: Float[Leaf, " B"]
    length_penalty: Float[Leaf, " B"]
    penalize_sequence: Bool[Leaf, " B"]
    early_stopping: Int[Leaf, " B"]
    stop: StopAutomata | None
    draft: Int[Leaf, "B Q"] | None = None

    @classmethod
    def stack(
        cls,
        requests: Sequence[SamplingParams],
        max_new_tokens: Sequence[int],
        compiler: StopStringCompiler,
        draft: Sequence[Sequence[int]] | None = None,
    ) -> "BatchedSamplingParams":
        """Stack the parameters of requests.

        Args:
            requests: parameters of each request.
            max_new_tokens: token budget of each request, limited by the context length.
            compiler: makes the automata of the stop strings.
            draft: with parallel decoding, the first draft of each request's images, as token ids.
        """

        def column(name: str, dtype: Any) -> Any:
            return np.array([getattr(request, name) for request in requests], dtype)

        budget: Any = np.asarray(max_new_tokens, np.int32)
        top_k: Any = np.array([min(one.top_k, _MAX_INT32) for one in requests], np.int32)  # larger ones keep all, too
        early_stopping: Any = np.array([EARLY_STOPPING.index(one.early_stopping) for one in requests], np.int32)
        tokens: Any = None if draft is None else np.array(draft, np.int32)
        penalize_sequence: Any = np.array([one.length_penalty_on == "sequence" for one in requests], bool)
        return cls(
            max_new_tokens=budget,
            sampler=SamplerParams(
                temperature=column("temperature", np.float32),
                top_k=top_k,
                top_p=column("top_p", np.float32),
                min_p=column("min_p", np.float32),
                seed=column("seed", np.uint32),
            ),
            image_constraints=BatchedImageConstraints.stack([request.image_constraint for request in requests]),
            guidance_scale=column("guidance_scale", np.float32),
            length_penalty=column("length_penalty", np.float32),
            penalize_sequence=penalize_sequence,
            early_stopping=early_stopping,
            stop=compiler.compile([request.stop_strings for request in requests]),
            draft=tokens,
        )
