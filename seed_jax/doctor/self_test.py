"""`seed-jax doctor --self-test`: whether this device computes what PyTorch computes, and trains, resumes and draws.

Tiny models with recorded outputs run at the default and at the highest matmul precision; then a tiny language model
trains two steps, resumes, writes the codes of an image, and a decoder draws them. Nothing is downloaded.
"""

import dataclasses
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax.data.shards import manifest
from seed_jax.data.shards.records import Record, encode
from seed_jax.data.shards.shards import shard_name, write_shard
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.doctor import cases
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.segments import ImageSegment
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.diffusion import Unclip, UnclipCondition
from seed_jax.models.llama.model import Llama
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer
from seed_jax.train.config import TrainConfig, load_config
from seed_jax.train.loop import train
from seed_jax.train.stages.registry import parse_config

# Greatest difference from PyTorch's float32, relative to the largest value. "default" allows for matmuls of bfloat16
# (TPUs) and TensorFloat-32 (GPUs), whose factors have 8 and 11 significant bits.
TOLERANCES = {"highest": 1e-4, "default": 5e-2}
# Codes are not compared where the second-nearest is this close, relative to the distance of the nearest.
_NEAR_TIES = {"highest": 1e-3, "default": 0.3}
# Tokens are not compared where the second-likeliest logit is this close, relative to the largest logit.
_NEAR_TOKENS = {"highest": 2e-4, "default": 0.1}
_RESUMED_LIMIT = 1e-6
STEPS = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
        name: what was run.
        precision: of matmuls, "default" or "highest".
        value: difference or count; None where it failed with an error.
        limit: largest value that passes.
        meaning: of the value, or the error.
        seconds: that it took, with compilation.
    """

    name: str
    precision: str
    value: float | None
    limit: float
    meaning: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.value is not None and self.value <= self.limit  # NaN does not pass

    def line(self) -> str:
        """Return the row as text."""
        value = "error" if self.value is None else f"{self.value:.3g}"
        verdict = "ok" if self.passed else "FAILED"
        return (
            f"{self.name:24} {self.precision:8} {value:>9} {self.limit:>9.3g}  {verdict:6} {self.seconds:5.1f} s  "
            f"{self.meaning}"
        )


HEADER = f"{'self-test':24} {'matmuls':8} {'value':>9} {'limit':>9}  {'':6} {'time':>7}  meaning"
Measured = Iterator[tuple[str, float, float, str]]


def run_self_test(report: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Run everything on the first local device.

    Args:
        report: called with each row as soon as it is known.
    """
    outcomes = []
    for precision in ("default", "highest"):
        for measure in (_tokenizer, _language_model, _decoder):
            with jax.default_matmul_precision(precision):
                outcomes += _measured(measure, precision, report)
    outcomes += _measured(_whole_run, "default", report)
    return outcomes


def _measured(measure: Callable[[str], Measured], precision: str, report: Callable[[Outcome], None]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = time.monotonic()
    try:
        for name, value, limit, meaning in measure(precision):
            outcomes.append(Outcome(name, precision, value, limit, meaning, time.monotonic() - start))
            report(outcomes[-1])
            start = time.monotonic()
    except Exception as error:  # the table shows what works beside what does not
        message = str(error).strip().splitlines() or [""]
        seconds = time.monotonic() - start
        name = measure.__name__.strip("_").replace("_", " ")
        outcomes.append(Outcome(name, precision, None, 0.0, f"{type(error).__name__}: {message[0]}", seconds))
        report(outcomes[-1])
    return outcomes


def _difference(value: Any, name: str) -> float:
    """Return the greatest difference from a recorded output, relative to its largest value."""
    expected = cases.goldens()[name]
    return float(np.abs(np.asarray(value, np.float32) - expected).max() / np.abs(expected).max())


def _tokenizer(precision: str) -> Measured:
    model, params, x, goldens = (
        SeedTokenizer(cases.TOKENIZER),
        cases.tokenizer_params(),
        cases.inputs(),
        cases.goldens(),
    )
    encoded = jax.jit(lambda p, images: model.apply({"params": p}, images, method="encode"))(params, x["images"])
    meaning = "from PyTorch, of the largest value"
    yield "causal embeddings", _difference(encoded.embeddings, "embeddings"), TOLERANCES[precision], meaning
    decided = goldens["margin"] > _NEAR_TIES[precision]
    different = int(((np.asarray(encoded.codes) != goldens["codes"]) & decided).sum())
    ties = int((~decided).sum())
    yield "codes", float(different), 0.0, f"of {decided.size} differ, {ties} near ties not counted"
    embed = jax.jit(lambda p, codes: model.apply({"params": p}, codes, method="embed_codes"))
    value = _difference(embed(params, x["codes"]), "generation_embedding")
    yield "generation embedding", value, TOLERANCES[precision], meaning


def _language_model(precision: str) -> Measured:
    params, x, goldens = cases.llama_params(), cases.inputs(), cases.goldens()
    logits = np.asarray(jax.jit(Llama(cases.LLAMA).apply)({"params": params}, jnp.asarray(x["tokens"])))
    value = _difference(logits, "logits")
    yield "logits", value, TOLERANCES[precision], "from PyTorch, of the largest value"
    expected = goldens["logits"]
    best = np.sort(expected, axis=-1)
    decided = best[..., -1] - best[..., -2] > _NEAR_TOKENS[precision] * np.abs(expected).max()
    different = int(((logits.argmax(-1) != expected.argmax(-1)) & decided).sum())
    yield "likeliest tokens", float(different), 0.0, f"of {int(decided.sum())} differ"
    if precision != "highest":  # after one different token, all others differ
        return
    generator = Generator(cases.LLAMA, params, Vocabulary.load(cases.VOCABULARY))
    (answer,) = generator.generate([x["tokens"][0].tolist()], mode="none", max_new_tokens=cases.NUM_GENERATED)
    wanted = goldens["generated"][0].tolist()
    same = next(
        (i for i, pair in enumerate(zip(answer.ids, wanted, strict=False)) if pair[0] != pair[1]), len(answer.ids)
    )
    yield "generated tokens", float(len(wanted) - same), 0.0, f"of {len(wanted)} after the first difference"


def _decoder(precision: str) -> Measured:
    unclip, params, x = Unclip(cases.DECODER), cases.decoder_params(), cases.inputs()
    condition = UnclipCondition(jnp.asarray(x["text_states"]), jnp.asarray(x["class_labels"]))
    noise = jax.jit(unclip.denoise)(params, jnp.asarray(x["latents"]), jnp.array([cases.TIMESTEP]), condition)
    meaning = "from PyTorch, of the largest value"
    yield "UNet", _difference(noise, "unet"), TOLERANCES[precision], meaning
    decoded = jax.jit(unclip.vae.decode)(params["vae"], jnp.asarray(x["latents"]))
    yield "autoencoder", _difference(decoded, "vae"), TOLERANCES[precision], meaning


def _whole_run(precision: str) -> Measured:
    """Train two steps, take the last checkpoint away, resume, generate the codes of an image, and draw them."""
    del precision
    with tempfile.TemporaryDirectory(prefix="seed_jax_self_test_") as temporary:
        place = Path(temporary)
        _write_shards(place / "shards")
        config, workdir = _config(place / "shards"), place / "run"
        train(config, workdir)
        losses = _losses(workdir)
        yield (
            f"{STEPS} training steps",
            float(sum(not math.isfinite(loss) for loss in losses)),
            0.0,
            f"losses not finite; losses {', '.join(f'{loss:.4f}' for loss in losses)}",
        )
        shutil.rmtree(workdir / "checkpoints" / str(STEPS))
        train(config, workdir)
        resumed = _losses(workdir)
        yield "resuming", abs(resumed[-1] - losses[-1]), _RESUMED_LIMIT, "difference of the repeated step's loss"
        generator = Generator.load(workdir)
        prompt = [generator.vocabulary.bos, *generator.vocabulary.encode("a red car")]
        (answer,) = generator.generate([prompt], mode="image", max_new_tokens=40)
        codes = [segment.codes for segment in answer.segments if isinstance(segment, ImageSegment)]
        missing = abs(len(codes) - 1) + sum(abs(len(image) - cases.TOKENIZER.codes_per_image) for image in codes)
        yield "generating an image", float(missing), 0.0, "codes or images too few or too many"
        tokenizer = ImageTokenizer(cases.TOKENIZER, cases.tokenizer_params())
        drawer = Drawer(cases.DECODER, cases.decoder_params())
        drawn = drawer.draw(tokenizer.embed_codes(np.asarray(codes, np.int32)), [0], DrawOptions("ddim", 2))
        wrong = drawn.shape != (1, cases.DECODER.image_size, cases.DECODER.image_size, 3) or int(drawn.std()) == 0
        yield (
            "drawing it",
            float(wrong),
            0.0,
            f"1 unless {cases.DECODER.image_size} x {cases.DECODER.image_size} pixels",
        )


def _write_shards(directory: Path) -> None:
    directory.mkdir()
    rng = np.random.Generator(np.random.Philox(3))
    texts = ("a dog", "the green grass", "a red car on the beach", "two cats")

    def record(index: int) -> bytes:
        codes = rng.integers(0, cases.TOKENIZER.num_codes, cases.TOKENIZER.codes_per_image).astype(np.uint16)
        return encode(Record(f"self_test/{index}", "self_test", (codes, texts[index % len(texts)]), {}))

    shard = write_shard(directory / shard_name(0), map(record, range(16)))
    manifest.save(
        directory, manifest.Manifest("self_test", (shard,), {"codes": 16, "texts": 16}, tokenizer="self-test")
    )


def _config(shards: Path) -> TrainConfig:
    config = load_config("pretrain:tiny")
    component = {"path": str(shards), "task": "image_text_pair", "weight": 1.0, "params": {"max_length": 128}}
    config.steps, config.log_every = STEPS, 1
    config.data.update(
        demo=False, vocabulary=str(cases.VOCABULARY), mixture=(component,), sequence_length=128,
        batch_size=jax.device_count(),
    )  # fmt: skip
    config.checkpoint.update(every_steps=1, keep_last=2)
    return parse_config(config)


def _losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    by_step = {row["step"]: row["loss"] for row in rows if "loss" in row}
    return [by_step[step] for step in sorted(by_step)]
