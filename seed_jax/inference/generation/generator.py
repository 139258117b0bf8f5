"""Text and image generation from prompts of token ids.

Requests of unequal length and with different sampling parameters share a batch. Batch size, prompt length and answer
length are padded to powers of two, so that a new request rarely needs a new compilation.
"""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference import weight_loading
from seed_jax.inference.generation.batching import (
    Batcher,
    BatchSharder,
    Request,
    RequestBatch,
    constrain_batch_axis,
    group_requests,
)
from seed_jax.inference.generation.beam_search import BeamSearch
from seed_jax.inference.generation.decode_loop import DecodeLoop, DecodeOutputs
from seed_jax.inference.generation.grammar import Grammar
from seed_jax.inference.generation.model_runner import ModelRunner
from seed_jax.inference.generation.parallel_decoding import check_draft_codes
from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.inference.generation.segments import Generation, Segment
from seed_jax.inference.generation.stop_strings import StopStringCompiler
from seed_jax.inference.generation.streaming import SegmentStreamer
from seed_jax.inference.language_model import open_language_model, read_draft_codes
from seed_jax.inference.programs import shared
from seed_jax.models.language_models import abstract_params, model_class
from seed_jax.models.nn.decoder_only import DecoderOnly, DecoderOnlyConfig
from seed_jax.precision import Precision
from seed_jax.typing import Tree

CHUNK_TOKENS = 32  # decode steps between two checks for an interruption
STREAM_CHUNK_TOKENS = 4  # decode steps between two pieces of a stream


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted functions of a generator; the first argument is a `DecodeLoop` or `BeamSearch`.

    Generators of equal models share them, so that loading another checkpoint of the same sizes compiles nothing.

    Attributes:
        prefill: (loop, params, prompts, sampling, max_new_tokens) -> state.
        decode: (loop, params, sampling, state, until_step) -> state; donates the state.
        outputs: (loop, state) -> `DecodeOutputs`.
    """

    prefill: Callable[..., Any]
    decode: Callable[..., Any]
    outputs: Callable[..., DecodeOutputs]

    @staticmethod
    @shared
    def of(model: DecoderOnly, grammar: Grammar, mesh: Mesh | None) -> "Programs":
        """Return the functions for a model, a grammar and the mesh whose context they are called in."""
        del model, grammar, mesh  # only what `shared` compares: the functions' first argument holds model and grammar
        return Programs(
            prefill=jax.jit(lambda loop, *rest: constrain_batch_axis(loop.prefill(*rest)), static_argnums=(0, 4)),
            decode=jax.jit(
                lambda loop, *rest: constrain_batch_axis(loop.decode(*rest)), static_argnums=0, donate_argnums=3
            ),
            outputs=jax.jit(lambda loop, state: loop.outputs(state), static_argnums=0),
        )


class Generator:
    """A language model on the device that answers requests.

    Example:
        generator = Generator.load("models/seed_llama_8b", quantize="int8")
        prompt = [generator.vocabulary.bos, *generator.vocabulary.encode("a dog")]
        (answer,) = generator.generate([prompt], SamplingParams(temperature=0.7, num_images=1))
        print(answer.segments, answer.finish_reason)

    Args:
        config: sizes of the model.
        params: parameters with stacked layers, adapters merged; lazy arrays are read one by one.
        vocabulary: the vocabulary that the model was trained with.
        precision: float32 by default; with bfloat16 compute, matrices are also stored in bfloat16.
        attention: implementation of attention, see `seed_jax.models.nn.attention`.
        quantize: "int8" or "int4" quantizes the kernels.
        draft_codes: first draft of an image in parallel decoding where the prompt holds no image, such as the most
            frequent code of each position.
        mesh: shards batches and weights as in training; by default everything is on one device.

    Raises:
        UserError: the vocabulary, the sizes and the parameters do not fit each other.
    """

    def __init__(
        self,
        config: DecoderOnlyConfig,
        params: Tree,
        vocabulary: Vocabulary,
        *,
        precision: Precision = Precision(),
        attention: str = "chunked",
        quantize: str | None = None,
        draft_codes: Sequence[int] | None = None,
        mesh: Mesh | None = None,
    ):
        if vocabulary.size != config.vocab_size:
            raise UserError(
                f"The vocabulary has {vocabulary.size} tokens but the language model {config.vocab_size}: use the "
                "vocabulary that the model was trained with."
            )
        self.config = config
        self.vocabulary = vocabulary
        self.precision = precision
        self.sharder = BatchSharder(mesh)
        # Unrolled layers: a scan would copy each layer's kernels out of their stack before it multiplies by them.
        self.model = model_class(config)(config, precision, attention=attention, scan_layers=False)
        self.grammar = Grammar.from_vocabulary(vocabulary)
        model_dir.check_tree(params, sharding.unbox(self._abstract_params(scan_layers=True)), "the language model")
        self.params = self._load_params(params, quantize, mesh)
        self.batcher = Batcher(
            config,
            vocabulary,
            self.grammar,
            StopStringCompiler(vocabulary),
            self.sharder.num_shards,
            draft_codes=None if draft_codes is None else check_draft_codes(draft_codes, vocabulary),
        )
        self.programs = Programs.of(self.model, self.grammar, mesh)
        self._compiled: set[tuple] = set()

    @classmethod
    def load(cls, directory: str | Path, **options) -> "Generator":
        """Read a model directory or the newest checkpoint of a training workdir, tensor by tensor.

        Args:
            directory: model directory, bundle or workdir.
            options: keyword arguments of the class.
        """
        loaded = open_language_model(directory)
        options.setdefault("draft_codes", read_draft_codes(loaded.references.language_model))
        return cls(loaded.config, loaded.params, loaded.vocabulary, **options)

    def replace_params(self, params: Tree) -> None:
        """Answer with other parameters of the same shapes from now on; compiled programs are kept."""
        model_dir.check_tree(params, sharding.unbox(self._abstract_params(scan_layers=True)), "the language model")
        self.params = self._load_params(params, None, self.sharder.mesh)

    def generate(
        self,
        prompts: Sequence[Sequence[int] | Request],
        sampling_params: SamplingParams | None = None,
        *,
        batch_size: int | None = None,
        **changes,
    ) -> list[Generation]:
        """Answer prompts, in order. Ctrl-C returns early, with what was generated until then.

        Args:
            prompts: token ids with BOS, or `Request`s with parameters of their own.
            sampling_params: of the prompts that are plain ids.
            batch_size: requests at a time; by default all.
            changes: fields of `SamplingParams` by name, which replace those of `sampling_params`.

        Returns:
            One `Generation` per prompt; after Ctrl-C unfinished ones have finish_reason "interrupted".

        Raises:
            UserError: a request cannot be answered; raised before anything is computed.
        """
        params = dataclasses.replace(sampling_params or SamplingParams(), **changes)
        requests = [prompt if isinstance(prompt, Request) else Request(prompt, params) for prompt in prompts]
        names = [f"Prompt {index + 1}" for index in range(len(requests))]
        for request, name in zip(requests, names, strict=True):
            self.batcher.token_budget(request, name)
        answers = [Generation((), (), "interrupted")] * len(requests)
        with Interrupt() as interrupt:
            for indices in group_requests(requests, batch_size):
                if interrupt.requested:
                    break
                batch = self.batcher.batch([requests[i] for i in indices], [names[i] for i in indices])
                run = self.run(batch, CHUNK_TOKENS)
                outputs = next(run)
                while not interrupt.requested and (later := next(run, None)) is not None:
                    outputs = later
                for row, index in enumerate(indices):
                    params = requests[index].sampling_params
                    answers[index] = Generation.from_outputs(outputs, row, params, self.vocabulary)
        return answers

    def stream(
        self, request: Request, chunk_tokens: int = STREAM_CHUNK_TOKENS, interrupt: "Interrupt | None" = None
    ) -> Iterator[Segment | Generation]:
        """Answer one request piece by piece. Ctrl-C ends it early, as does closing the iterator.

        Args:
            request: the request.
            chunk_tokens: decode steps between two pieces; a beam search yields nothing before its end.
            interrupt: ends the answer once its `requested` is set, for streams outside the main thread; by default
                Ctrl-C does.

        Yields:
            Pieces of text and complete images as they are generated; at last the whole `Generation`.
        """
        streamer = SegmentStreamer(self.vocabulary, request.sampling_params.stop_strings)
        outputs = None
        with Interrupt() if interrupt is None else contextlib.nullcontext(interrupt) as interrupt:
            for outputs in self.run(self.batcher.batch([request], ["The prompt"]), chunk_tokens):
                if request.sampling_params.beams == 1:
                    yield from streamer.update(outputs.ids[0, : outputs.lengths[0]].tolist())
                if interrupt.requested:
                    break
        assert outputs is not None  # `run` yields at least once
        answer = Generation.from_outputs(outputs, 0, request.sampling_params, self.vocabulary)
        yield from streamer.finish(answer.segments)
        yield answer

    def run(self, batch: RequestBatch, chunk_tokens: int) -> Iterator[DecodeOutputs]:
        """Yield the outputs so far (on the host) after every `chunk_tokens` decode steps."""
        runner = ModelRunner(self.model, batch.beams, batch.guided)
        loop = DecodeLoop(runner, self.grammar) if batch.beams == 1 else BeamSearch(runner, self.grammar)
        self._log_compilation(batch)
        with self.sharder.mesh_context():
            prompts, sampling = self.sharder.shard(batch.prompts), self.sharder.shard_sampling(batch.sampling)
            state = self.programs.prefill(loop, self.params, prompts, sampling, batch.max_new_tokens)
        step = 0
        while True:
            step = min(step + chunk_tokens, batch.max_new_tokens)
            with self.sharder.mesh_context():
                state = self.programs.decode(loop, self.params, sampling, state, np.int32(step))
                outputs = jax.device_get(self.programs.outputs(loop, state))
            yield outputs
            if outputs.done.all() or step == batch.max_new_tokens:
                return

    def _log_compilation(self, batch: RequestBatch) -> None:
        """Announce the silent wait before the first batch of its shape."""
        tokens, stop = batch.prompts.tokens, batch.sampling.stop
        automata = None if stop is None else stop.transitions.shape
        parallel = batch.sampling.draft is not None
        shape = (batch.beams, batch.guided, parallel, tokens.shape, batch.max_new_tokens, automata)
        if shape not in self._compiled:
            self._compiled.add(shape)
            count, length = tokens.shape
            logging.info(
                "compiling generation for %d prompt(s) of up to %d tokens and answers of up to %d tokens ...",
                count, length, batch.max_new_tokens,
            )  # fmt: skip

    def _abstract_params(self, scan_layers: bool) -> Tree:
        return abstract_params(self.config, self.precision, scan_layers=scan_layers)

    def _load_params(self, params: Tree, quantize: str | None, mesh: Mesh | None) -> Tree:
        scheme_of = weight_loading.llama_schemes(quantize)
        tree = weight_loading.unstack(params)
        put = None
        if mesh is not None:
            put = weight_loading.sharded_put(mesh, tree, scheme_of, self._abstract_params(scan_layers=False))
        # Matrices are converted to the compute dtype once instead of at every token.
        dtype_of = weight_loading.matrix_dtype(self.precision.compute_dtype)
        return weight_loading.load(tree, dtype_of, scheme_of, put)


class Interrupt:
    """Context in which the first SIGINT only sets `requested`; the second one raises KeyboardInterrupt as usual.

    Signals reach the main thread only: in other threads the context has no effect.
    """

    def __init__(self):
        self.requested = False
        self._previous = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
