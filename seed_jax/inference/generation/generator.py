"""Answers of text and images to prompts of token ids.

Prompts of unequal length and with different settings share a batch. Batches are filled up to a power of two in rows,
prompt length and answer length, so that a new prompt rarely means a new compilation.
"""

import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh

from seed_jax.checkpoint import model_dir
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference import weight_loading
from seed_jax.inference.generation.batching import Batch, Batcher, Placement, Request, bucket, by_rows, groups
from seed_jax.inference.generation.beam_search import BeamSearch
from seed_jax.inference.generation.decode_loop import Answers, Decoding
from seed_jax.inference.generation.grammar import Grammar
from seed_jax.inference.generation.model_runner import Streams
from seed_jax.inference.generation.sampling_params import Settings
from seed_jax.inference.generation.segments import Generation, Segment
from seed_jax.inference.generation.stop_strings import StopTables
from seed_jax.inference.generation.streaming import Streamer
from seed_jax.inference.weight_loading import open_language_model
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.precision import Precision

__all__ = ["Generation", "Generator", "Request", "Settings", "bucket"]

CHUNK = 32  # tokens between two looks at whether the user has interrupted
STREAM_CHUNK = 4  # tokens between two pieces of a stream


class Generator:
    """A language model on the device, ready to answer prompts.

    Args:
        params: of a scanned `Llama` of these sizes, adapters merged; lazy ones are read one by one.
        vocabulary: the model's own.
        precision: float32 by default; with bfloat16 compute the matrices are stored in bfloat16 too.
        quantize: "int8" or "int4" rounds the kernels.
        mesh: cut batches and weights over devices, as in training; by default everything is on one device.
    """

    def __init__(
        self,
        config: LlamaConfig,
        params: dict[str, Any],
        vocabulary: Vocabulary,
        *,
        precision: Precision = Precision(),
        attention: str = "chunked",
        quantize: str | None = None,
        mesh: Mesh | None = None,
    ):
        if vocabulary.size != config.vocab_size:
            raise UserError(
                f"The vocabulary has {vocabulary.size} tokens but the language model {config.vocab_size}: use the "
                "vocabulary that the model was trained with."
            )
        self.config, self.vocabulary, self.precision = config, vocabulary, precision
        self.placement = Placement(mesh)
        # Layers apart: a scan would copy each layer's kernels out of their stack before it multiplies by them.
        self.model, self.grammar = Llama(config, precision, attention=attention, scan=False), Grammar.of(vocabulary)
        model_dir.check_tree(params, meta.unbox(self._abstract(scan=True)), "the language model")
        choose = weight_loading.llama_schemes(quantize) if quantize else lambda path: None
        tree = weight_loading.unstacked(params)
        place = None if mesh is None else weight_loading.cut_over(mesh, tree, choose, self._abstract(scan=False))
        # Matrices in the compute format: rounded once instead of at every token.
        self.params = weight_loading.load(tree, weight_loading.matrices(precision.compute_dtype), choose, place)
        self.batcher = Batcher(config, vocabulary, self.grammar, StopTables(vocabulary), self.placement.shards)
        self._begin = jax.jit(lambda program, *rest: by_rows(program.begin(*rest)), static_argnums=(0, 4))
        self._go_on = jax.jit(lambda program, *rest: by_rows(program.go_on(*rest)), static_argnums=0, donate_argnums=3)
        self._answers = jax.jit(lambda program, state: program.answers(state), static_argnums=0)

    @classmethod
    def load(cls, directory: str | Path, **options) -> "Generator":
        """Read a model directory or a training workdir, tensor by tensor; `options` as for the class."""
        found = open_language_model(directory)
        return cls(found.config, found.params, found.vocabulary, **options)

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Request],
        settings: Settings | None = None,
        *,
        batch_size: int | None = None,
        **changes,
    ) -> list[Generation]:
        """Answer prompts, token ids with BOS or `Request`s with settings of their own, in order.

        Args:
            settings: of the prompts that are plain ids; `changes` are its fields by name.
            batch_size: prompts at a time; by default all.

        Ctrl-C ends it early: the answers are what was generated until then, and are marked so.
        """
        settings = dataclasses.replace(settings or Settings(), **changes)
        requests = [prompt if isinstance(prompt, Request) else Request(prompt, settings) for prompt in prompts]
        names = [f"Prompt {place + 1}" for place in range(len(requests))]
        for request, name in zip(requests, names, strict=True):
            self.batcher.budget(request, name)  # what is wrong is said before anything is computed
        found = [Generation((), (), "interrupted")] * len(requests)
        with Interrupt() as interrupt:
            for places in groups(requests, batch_size):
                if interrupt.asked:
                    break
                batch = self.batcher.batch([requests[i] for i in places], [names[i] for i in places])
                run = self._run(batch, CHUNK)
                answers = next(run)
                while not interrupt.asked and (later := next(run, None)) is not None:
                    answers = later
                for row, place in enumerate(places):
                    found[place] = Generation.of(answers, row, requests[place].settings, self.vocabulary)
        return found

    def stream(self, request: Request, chunk: int = STREAM_CHUNK) -> Iterator[Segment | Generation]:
        """Answer one prompt bit by bit: pieces of text and whole images as they come, at last the `Generation`.

        Args:
            chunk: tokens between two looks; a beam search shows nothing before its end.

        Ctrl-C ends it early, as does closing the iterator.
        """
        streamer = Streamer(self.vocabulary, request.settings.stop)
        with Interrupt() as interrupt:
            for answers in self._run(self.batcher.batch([request], ["The prompt"]), chunk):
                if request.settings.beams == 1:
                    yield from streamer.more(answers.ids[0, : answers.counts[0]].tolist())
                if interrupt.asked:
                    break
        answer = Generation.of(answers, 0, request.settings, self.vocabulary)
        yield from streamer.rest(answer.segments)
        yield answer

    def _abstract(self, scan: bool) -> dict[str, Any]:
        model = Llama(self.config, self.precision, scan=scan)
        return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]

    def _run(self, batch: Batch, chunk: int) -> Iterator[Answers]:
        """Yield the answers so far after every `chunk` tokens."""
        streams = Streams(self.model, batch.beams, batch.guided)
        program = (Decoding if batch.beams == 1 else BeamSearch)(streams, self.grammar)
        with self.placement.entered():
            prompts, controls = self.placement.rows(batch.prompts), self.placement.controls(batch.controls)
            state, step = self._begin(program, self.params, prompts, controls, batch.new_tokens), 0
        while True:
            step = min(step + chunk, batch.new_tokens)
            with self.placement.entered():
                state = self._go_on(program, self.params, controls, state, np.int32(step))
                answers = jax.device_get(self._answers(program, state))
            yield answers
            if answers.done.all() or step == batch.new_tokens:
                return


class Interrupt:
    """While entered, the first SIGINT only sets `asked`; the second one raises KeyboardInterrupt as usual.

    Signals reach the main thread only: elsewhere nothing changes.
    """

    def __init__(self):
        self.asked = False
        self._before = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
