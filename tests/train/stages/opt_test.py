"""Training OPT with the stage of the language models, and export of the run."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from seed_jax import cli
from seed_jax.checkpoint import model_dir
from seed_jax.convert.opt.key_table import abstract_params
from seed_jax.data.shards.records import Record
from seed_jax.models.opt.block import LORA_TARGETS
from seed_jax.models.opt.model import Opt
from seed_jax.train import loop
from seed_jax.train.stages.language import LanguageStage
from tests.data.batches import mixtures
from tests.models.opt.cases import GOLDEN, golden_params, vocabulary
from tests.support import configs, golden


def run_config(directory: Path):
    rng = np.random.default_rng(0)
    words = ("a photo of a dog", "two cats", "an image of the street")
    records = (Record(f"a/{i}", "a", (rng.integers(0, 64, 32).astype(np.uint16), words[i % 3]), {}) for i in range(24))
    shards = mixtures.write(directory / "pairs", records)
    vocabulary().save(directory / "vocabulary")
    model_dir.save(directory / "opt", "opt", {"sizes": GOLDEN.to_dict(), "image_tokenizer": None}, golden_params())
    component = {"path": str(shards), "task": "image_text_pair", "weight": 1.0, "params": {"max_length": 80}}
    options = {
        "data.demo": False, "data.vocabulary": str(directory / "vocabulary"), "data.mixture": (component,),
        "data.sequence_length": 96, "model.init": str(directory / "opt"), "steps": 4, "log_every": 1,
        "checkpoint.every_steps": 4,
    }  # fmt: skip
    return configs.config_for("pretrain:tiny", **options)


@pytest.mark.slow
def test_adapters_train_and_the_run_is_exported(tmp_path):
    config = run_config(tmp_path)
    stage = LanguageStage(config)
    assert isinstance(stage.model, Opt)
    assert stage.kind == "opt"
    assert stage.model.lora.targets == LORA_TARGETS
    loop.train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert cli.main(["export", "opt", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "hf")]) == 0
    exported, original = load_file(tmp_path / "hf/model.safetensors"), golden.tensors("opt_tiny/model.safetensors")
    assert exported.keys() == original.keys()
    name = "model.decoder.layers.1.fc1.weight"
    assert (exported[name] != original[name]).any()  # its adapter is merged
    assert (tmp_path / "hf/merges.txt").is_file()
    assert abstract_params(GOLDEN)["embed_tokens"]["embedding"].shape == (640, 32)
