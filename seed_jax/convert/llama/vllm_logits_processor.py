"""The image grammar as a logits processor of vLLM: an image is `<img>`, 32 codes and `</img>`.

This file needs vLLM and PyTorch only. Copy it beside an exported model, or name it where seed_jax is installed:

    seed-jax export llama --model models/seed_llama_8b --out seed_llama_8b_hf
    cp seed_jax/convert/llama/vllm_logits_processor.py .
    PYTHONPATH=. vllm serve seed_llama_8b_hf --logits-processors vllm_logits_processor:ImageGrammar

The prompt is token ids or text in which images are `<img><img_00042>...</img>`. vLLM's answer has the same form if the
request sets `skip_special_tokens` to false; `seed-jax detokenize` draws it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor  # pyright: ignore[reportMissingImports]
except ImportError:  # for tests of the interface
    LogitsProcessor = object

Tensor = Any  # torch.Tensor: PyTorch is imported late, as everywhere in this package
CODES_PER_IMAGE = 32
TOKENS_PER_IMAGE = CODES_PER_IMAGE + 2


class _Request:
    """Where a request is in the grammar.

    Args:
        prompt: its token ids.
        output: its generated ids so far, a list to which vLLM appends.
        max_tokens: its token budget; None: unknown.
    """

    def __init__(self, prompt: list[int], output: list[int], max_tokens: int | None):
        self.prompt = prompt
        self.output = output
        self.max_tokens = max_tokens
        self.num_codes: int | None = None  # of the image that is being generated; None outside an image
        self.num_read = 0  # of `output`


class ImageGrammar(LogitsProcessor):  # pyright: ignore[reportGeneralTypeIssues]
    """Allows codes inside an image only, exactly 32 of them, and begins no image that would not fit into `max_tokens`.

    Args:
        vllm_config: of the engine; `model_config.tokenizer` is a directory with `added_tokens.json`.
        device: of the logits.
        is_pin_memory: unused.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool):
        import torch

        del is_pin_memory
        path = Path(vllm_config.model_config.tokenizer) / "added_tokens.json"
        if not path.is_file():
            raise ValueError(f"{path} does not exist: give vLLM the directory that `seed-jax export llama` wrote.")
        added = json.loads(path.read_text(encoding="utf-8"))
        self._begin, self._end = added["<img>"], added["</img>"]
        codes = [index for name, index in added.items() if name.startswith("<img_")]
        self._codes = torch.tensor(sorted(codes), device=device)
        self._only_end = torch.tensor([self._end], device=device)
        self._requests: dict[int, _Request] = {}

    def is_argmax_invariant(self) -> bool:
        """Return whether greedy decoding is unaffected."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests that enter, leave or change their place in vLLM's batch.

        Args:
            batch_update: vLLM's `BatchUpdate`; None if the batch is the same.
        """
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._requests.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            request = _Request(list(prompt or ()), output, params.max_tokens)
            for token in request.prompt:
                self._advance(request, token)
            self._requests[index] = request
        for source, target, direction in batch_update.moved:
            moved, replaced = self._requests.pop(source, None), self._requests.pop(target, None)
            if moved is not None:
                self._requests[target] = moved
            if replaced is not None and direction.name == "SWAP":
                self._requests[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits [requests, vocabulary] with minus infinity for the tokens that may not come next."""
        inside, complete, outside, full = [], [], [], []
        for index, request in self._requests.items():
            for token in request.output[request.num_read :]:
                if token < 0:
                    raise RuntimeError("vLLM's last tokens are not known yet: start it with --no-async-scheduling.")
                self._advance(request, token)
            request.num_read = len(request.output)
            if request.num_codes is not None:
                (inside if request.num_codes < CODES_PER_IMAGE else complete).append(index)
                continue
            outside.append(index)
            if request.max_tokens is not None and request.max_tokens - len(request.output) < TOKENS_PER_IMAGE:
                full.append(index)
        forbidden = float("-inf")
        for indices, allowed in ((inside, self._codes), (complete, self._only_end)):
            self._replace(logits, indices, lambda part, allowed=allowed: _mask_others(part, allowed))
        logits[_index(outside, logits)[:, None], self._codes] = forbidden
        logits[_index(outside, logits), self._end] = forbidden
        logits[_index(full, logits), self._begin] = forbidden
        return logits

    def _replace(self, logits: Tensor, indices: list[int], change: Callable[[Tensor], Tensor]) -> None:
        if indices:
            index = _index(indices, logits)
            logits[index] = change(logits[index])

    def _advance(self, request: _Request, token: int) -> None:
        if token == self._begin:
            request.num_codes = 0
        elif token == self._end:
            request.num_codes = None
        elif request.num_codes is not None:
            request.num_codes += 1


def _index(indices: list[int], logits: Tensor) -> Tensor:
    import torch

    return torch.tensor(indices, dtype=torch.long, device=logits.device)


def _mask_others(logits: Tensor, allowed: Tensor) -> Tensor:
    masked = logits.new_full(logits.shape, float("-inf"))
    masked[:, allowed] = logits[:, allowed]
    return masked
