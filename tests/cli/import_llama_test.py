"""Imports held against PyTorch, and what is refused leaves nothing behind."""

import json
import logging
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.convert.hugging_face.source import LanguageModelSource
from seed_jax.convert.llama.hf_export import LLAMA
from seed_jax.inference.language_model import load_language_model
from tests.convert.llama import cases
from tests.support import golden

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return cases.hugging_face(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return cases.peft(tmp_path_factory.mktemp("peft") / "adapter")


@pytest.fixture
def copy(source, tmp_path):
    shutil.copytree(source, tmp_path / "hf")
    return tmp_path / "hf"


def run(source, out, *options) -> int:
    return main(["import", "llama", "--from", str(source), "--out", str(out), *map(str, options)])


def checks(out) -> dict:
    report = json.loads((out / "parity.json").read_text())
    assert report["passed"]
    return {check["name"]: check["value"] for check in report["checks"]}


def as_bin_shards(directory) -> None:
    """Turn the folder into what older releases of transformers wrote, in float16."""
    half = {n: torch.from_numpy(t).half() for n, t in load_file(directory / "model.safetensors").items()}
    (directory / "model.safetensors").unlink()
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": list(half)[i::2] for i in range(2)}
    for file, names in shards.items():
        torch.save({name: half[name] for name in names}, directory / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_old_style_shards_with_wrong_token_ids(copy, tmp_path, caplog):
    as_bin_shards(copy)
    cases.edit(copy / "config.json", bos_token_id=0, eos_token_id=1, pad_token_id=-1)
    caplog.set_level(logging.INFO)
    assert run(copy, tmp_path / "out", "--verify") == 0
    assert "bos_token_id 1, eos_token_id 2, pad_token_id 0 are used instead" in caplog.text
    assert checks(tmp_path / "out").keys() == {"logits", "KL divergence"}
    assert LanguageModelSource.open(LLAMA, tmp_path / "out").dtype == np.float16
    assert main(["export", "llama", "--model", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    assert json.loads((tmp_path / "back/generation_config.json").read_text()) == {
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--dtype", "bfloat16"], ["--unmerged"], ["--unmerged", "--dtype", "float16"]])
def test_an_adapter_equals_peft(source, adapter, tmp_path, options):
    pytest.importorskip("peft")
    assert run(source, tmp_path / "out", "--adapter", adapter, "--verify", *options) == 0
    assert checks(tmp_path / "out")["logits"] < 1e-4


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_an_adapter_that_peft_saved_is_read(source, tmp_path, safe):
    peft = pytest.importorskip("peft")
    import transformers

    base = transformers.LlamaForCausalLM.from_pretrained(source)
    pattern = r".*\.(q_proj|v_proj|down_proj)"
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=pattern, modules_to_save=list(LLAMA.saved_modules))
    model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "saved")
    if not safe:
        state = load_file(tmp_path / "saved/adapter_model.safetensors")
        torch.save({n: torch.from_numpy(t) for n, t in state.items()}, tmp_path / "saved/adapter_model.bin")
        (tmp_path / "saved/adapter_model.safetensors").unlink()
    assert run(source, tmp_path / "out", "--adapter", tmp_path / "saved", "--unmerged", "--verify") == 0
    assert checks(tmp_path / "out")["logits"] < 1e-4
    spec = LanguageModelSource.open(LLAMA, tmp_path / "out").spec
    assert (spec.rank, spec.alpha, spec.targets) == (4, 6.0, ("down_proj", "q_proj", "v_proj"))


def test_an_adapter_kept_apart_is_merged_where_it_is_used(source, adapter, tmp_path):
    assert run(source, tmp_path / "apart", "--adapter", adapter, "--unmerged") == 0
    assert run(source, tmp_path / "merged", "--adapter", adapter) == 0
    apart, merged = (load_language_model(tmp_path / name).params for name in ("apart", "merged"))
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(apart), jax.tree.leaves_with_path(merged), strict=True):
        # Sums of 16 products, made by NumPy here and by XLA there.
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=str(path))


def test_sums_are_made_in_float32_and_rounded_last(source, adapter, tmp_path):
    assert run(source, tmp_path / "out", "--adapter", adapter, "--dtype", "bfloat16") == 0
    kernel = model_dir.open_lazily(tmp_path / "out").params["layers"]["mlp"]["up_proj"]["kernel"]
    recorded = golden.tensors("llama_tiny/lora.merged_weights.safetensors")
    for layer in range(3):
        expected = recorded[f"model.layers.{layer}.mlp.up_proj.weight"].T.astype(ml_dtypes.bfloat16)
        # Rounding the base first moves half of the numbers; sums in another order only a few that lie on a border.
        assert (kernel[layer] != expected).mean() < 1e-3


def test_an_adapter_may_bring_the_image_tokens_along(copy, adapter, tmp_path):
    """The original adapts a base of 32000 tokens whose embeddings and head the adapter replaces by 40194."""
    tensors = load_file(copy / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:300]
    save_file(tensors, copy / "model.safetensors")
    cases.edit(copy / "config.json", vocab_size=300)
    assert run(copy, tmp_path / "out", "--adapter", adapter) == 0
    assert LanguageModelSource.open(LLAMA, tmp_path / "out").config.vocab_size == 366


FULL_DISK = """
import resource, signal, sys
from seed_jax.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for command in sys.argv[1:]:
    print(main(command.split()))
"""


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(source, tmp_path):
    """A limit on the size of files fails like a full disk: in the middle of a write."""
    assert main(["import", "llama", "--from", str(source), "--out", str(tmp_path / "model")]) == 0
    before = sorted(tmp_path.iterdir())
    commands = [
        f"import llama --from {source} --out {tmp_path}/again",
        f"export llama --model {tmp_path}/model --out {tmp_path}/exported",
    ]
    process = subprocess.run([sys.executable, "-c", FULL_DISK, *commands], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["2", "2"]
    sentences = [line for line in process.stderr.splitlines() if line.startswith("seed-jax: ")]
    assert len(sentences) == 2
    for sentence, name in zip(sentences, ("again", "exported"), strict=True):
        assert name in sentence
        assert "File too large" in sentence
    assert "Traceback" not in process.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_refused_leaves_nothing_behind(copy, adapter, tmp_path, capsys):
    def refused(message, *options):
        assert run(copy, tmp_path / "out", *options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))

    refused("give one with --adapter", "--unmerged")
    path = adapter / "adapter_config.json"
    before = path.read_text()
    cases.edit(path, base_model_name_or_path="llama-13b", r=8)
    refused("is an adapter for another base model (its config names 'llama-13b')", "--adapter", adapter)
    path.write_text(before)
    refused("has neither adapter_model.safetensors nor adapter_model.bin", "--adapter", tmp_path)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][5] = 7e4
    save_file(tensors, copy / "model.safetensors")
    refused("model.norm.weight holds 70000, more than float16's largest number, 65504", "--dtype", "float16")
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-1000])
    refused("is not a valid safetensors file")
    (copy / "model.safetensors").unlink()
    refused("has no weights")
    (copy / "pytorch_model.bin").write_bytes(whole)
    refused("it is truncated, of another format, or contains code")
    cases.edit(copy / "config.json", architectures=["MistralForCausalLM"])
    refused("has architectures ['MistralForCausalLM'], expected ['LlamaForCausalLM']")


def test_an_adapter_with_other_layers_is_for_another_base(copy, adapter, tmp_path, capsys):
    tensors = {n: t for n, t in load_file(copy / "model.safetensors").items() if ".layers.2." not in n}
    save_file(tensors, copy / "model.safetensors")
    cases.edit(copy / "config.json", num_hidden_layers=2)
    assert run(copy, tmp_path / "out", "--adapter", adapter) == 2
    error = capsys.readouterr().err
    assert f"{adapter} is an adapter for another base model (its config names 'vicuna')" in error
    assert "unexpected: " in error
    assert "layers.2." in error
