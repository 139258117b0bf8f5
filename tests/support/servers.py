"""`seed-jax serve` in a separate process, with a tiny SEED-LLaMA."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from seed_jax.checkpoint import model_dir
from seed_jax.convert.llama.key_table import abstract_params as abstract_llama_params
from seed_jax.inference.language_model import write_bundle
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.diffusion.cases import random_decoder
from tests.models.tokenizer.cases import random_like
from tests.support import golden, philox, xla_flags

ROOT = Path(__file__).parents[2]
SIZES = dataclasses.replace(LlamaConfig.tiny(830), hidden_size=32, intermediate_size=48, max_length=256)
START_S = 300.0


def write_tiny_bundle(root: Path) -> Path:
    """Write a language model, an image tokenizer and a decoder with random weights, and return their bundle."""
    tokenizer = SeedTokenizerConfig.tiny()
    weights = random_like(abstract_params(tokenizer))
    model_dir.save(root / "tokenizer", "seed_tokenizer", {"sizes": tokenizer.to_dict()}, weights)
    files = {file.name: file for file in golden.path("text_tokenizer/tokenizer").iterdir()}
    params = philox.params_like(abstract_llama_params(SIZES), seed=0, scale=0.02)
    model_dir.save(root / "llama", "llama", {"sizes": SIZES.to_dict(), "image_tokenizer": None}, params, files=files)
    unclip, weights = random_decoder(UnclipConfig.tiny(tokenizer.embedding_width))
    model_dir.save(root / "decoder", "unclip", {"sizes": unclip.config.to_dict()}, weights)
    parts = {"language_model": root / "llama", "image_tokenizer": root / "tokenizer", "decoder": root / "decoder"}
    write_bundle(root / "bundle", **parts, prompt_style="vicuna")
    return root / "bundle"


class ServerProcess:
    """A running server.

    Args:
        log: file for what it prints.
        arguments: of `seed-jax serve`.
        environment: additional variables.
    """

    def __init__(self, log: Path, *arguments: object, **environment: str):
        command = [sys.executable, "-m", "seed_jax.cli", "serve", "--port", "0", *map(str, arguments)]
        variables = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags.flags(1),
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=variables, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent
            )
        self.url = self._wait_for_address()
        self.http = httpx.Client(base_url=self.url, timeout=120)

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + START_S
        while not (match := re.search(r"Serving on (http://\S+)", self.printed())):
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.1)
        return match[1]

    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def metric(self, name: str) -> float:
        """Return the sum over a metric's labels."""
        text = self.http.get("/metrics").text
        values = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert values, f"{name} is not in {text}"
        return sum(map(float, values))

    def wait_for(self, condition, limit: float = 60.0) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM, limit: float = 60.0) -> int:
        """Send a signal and return the exit code."""
        self.http.close()
        self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(limit)
        self.process.kill()
        self.process.wait()
        raise AssertionError(f"still running {limit} s after the signal: {self.printed()[-2000:]}")
