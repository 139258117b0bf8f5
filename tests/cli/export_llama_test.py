"""What is exported, PyTorch's transformers and peft load: without a warning, and with the same numbers."""

import json
import logging
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seed_jax.cli import main
from seed_jax.convert.llama.text_tokenizer import token_id_check
from seed_jax.convert.tensors import open_tensors
from seed_jax.data.text.vocabulary import Vocabulary
from tests.convert.llama import cases
from tests.support import golden

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return cases.hugging_face(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return cases.peft(tmp_path_factory.mktemp("peft") / "adapter")


@pytest.fixture(scope="module")
def model(tmp_path_factory, source):
    out = tmp_path_factory.mktemp("model") / "m"
    assert main(["import", "llama", "--from", str(source), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory, source, adapter):
    return cases.workdir(tmp_path_factory.mktemp("run"), source, adapter)


def export(model, out, *options) -> int:
    return main(["export", "llama", "--model", str(model), "--out", str(out), *options])


def logits_of(model, expected) -> None:
    """Hold a PyTorch model against recorded logits."""
    inputs = golden.tensors("llama_tiny/inputs.safetensors")
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(inputs["input_ids"]).long()).logits.numpy()
    valid = inputs["attention_mask"] == 1
    # The recorded max |f32-f64| is 9e-6; other versions of PyTorch sum in another order.
    np.testing.assert_allclose(found[valid], expected[valid], atol=1e-4)


def test_a_sharded_export_loads_without_a_warning(model, source, tmp_path, caplog):
    assert export(model, tmp_path / "out", "--max-shard-size", "200kB") == 0
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    logger.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    logits_of(loaded, golden.tensors("llama_tiny/outputs.safetensors")["logits"])
    ids = (loaded.generation_config.bos_token_id, loaded.generation_config.eos_token_id)
    assert (*ids, loaded.generation_config.pad_token_id) == (1, 2, 0)
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id, loaded.config.pad_token_id) == (1, 2, 0)
    shards = sorted(path for path in (tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert all(path.stat().st_size < 201_000 for path in shards)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    stored = load_file(source / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for n, t in stored.items() if "rotary" not in n)
    for name, tensor in open_tensors(shards).items():
        assert tensor.read().tobytes() == stored[name].tobytes(), name


def test_the_exported_text_tokenizer_gives_our_ids(model, tmp_path):
    """The original's tokenizer_config.json alone makes transformers 5 keep the white space beside image tokens."""
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    del config["legacy"]
    config |= {"chat_template": "{{ messages }}", "model_max_length": 10**30}
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps(config))
    assert export(tmp_path / "model", tmp_path / "out") == 0
    ours = Vocabulary.load(tmp_path / "out")
    assert ours.fingerprint == Vocabulary.load(model).fingerprint
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == 366
    assert theirs.chat_template == "{{ messages }}"
    image = "<img><img_00003><img_00060></img>"
    for text in (f"a cat{image} dog", f"USER: {image}What?\nASSISTANT:", f"a {image} {image}\n</s>[INST] b"):
        assert theirs(text)["input_ids"] == ours.encode(text, bos=True)
        assert ours.encode(f" {image} ") == ours.encode(image)
    assert token_id_check(tmp_path / "out").value == 0
    spoiled = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    del spoiled["added_tokens_decoder"]
    (tmp_path / "out/tokenizer_config.json").write_text(json.dumps(spoiled))
    assert not token_id_check(tmp_path / "out").passed


def test_adapters_of_a_training_workdir_are_merged(trained, source, tmp_path):
    assert export(trained, tmp_path / "out", "--verify") == 0
    found = load_file(tmp_path / "out/model.safetensors")
    base, adapter = load_file(source / "model.safetensors"), golden.tensors("llama_tiny/lora.adapter.safetensors")
    expected = golden.tensors("llama_tiny/lora.merged_weights.safetensors")
    for name, tensor in found.items():
        if "_proj" not in name:
            np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
            continue
        a, b = (adapter[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"] for part in "AB")
        # The base was stored in bfloat16, the sum W + 2 B A is float32: nothing is rounded on the way out.
        whole = base[name].astype(ml_dtypes.bfloat16).astype(np.float32) + 2 * b @ a
        np.testing.assert_allclose(tensor, whole, atol=1e-6, err_msg=name)
    report = json.loads((tmp_path / "out/parity.json").read_text())
    assert report["passed"]
    assert [check["name"] for check in report["checks"]] == ["logits", "KL divergence", "token ids"]
    assert len(report["differences"]) == 30


def test_peft_loads_base_and_adapter(trained, adapter, tmp_path):
    peft = pytest.importorskip("peft")
    assert export(trained, tmp_path / "out", "--peft", "--dtype", "float32", "--verify") == 0
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out/base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out/adapter")
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out/base")
    merged = peft.PeftModel.from_pretrained(merged, tmp_path / "out/adapter").merge_and_unload()
    with torch.no_grad():
        tokens = torch.arange(40)[None]
        np.testing.assert_allclose(loaded(tokens).logits, merged(tokens).logits, atol=1e-4)
    # The adapter itself is what came in, bit for bit.
    before, after = (load_file(d / "adapter_model.safetensors") for d in (adapter, tmp_path / "out/adapter"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "out/base"
    )


def test_an_adapter_alone_fits_the_original_base(trained, source, tmp_path):
    peft = pytest.importorskip("peft")
    assert export(trained, tmp_path / "out", "--adapter-only", "--base", "lmsys/vicuna", "--verify", "tensors") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "parity.json", "parity.md", "README.md",
    }  # fmt: skip
    base = transformers.LlamaForCausalLM.from_pretrained(source)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    logits_of(loaded, golden.tensors("llama_tiny/lora.outputs.safetensors")["logits"])


def test_numbers_are_rounded_once_and_last(trained, tmp_path):
    assert export(trained, tmp_path / "wide", "--dtype", "float32") == 0
    assert export(trained, tmp_path / "narrow", "--dtype", "float16") == 0
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "narrow"))
    for name, tensor in narrow.items():
        np.testing.assert_array_equal(tensor, wide[name].astype(np.float16), err_msg=name)
    assert json.loads((tmp_path / "narrow/config.json").read_text())["torch_dtype"] == "float16"


def test_a_number_beyond_float16_is_named_and_nothing_written(source, tmp_path, capsys):
    wild = tmp_path / "hf"
    shutil.copytree(source, wild)
    tensors = load_file(wild / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = -1e5
    save_file(tensors, wild / "model.safetensors")
    assert main(["import", "llama", "--from", str(wild), "--out", str(tmp_path / "m")]) == 0
    assert export(tmp_path / "m", tmp_path / "out", "--dtype", "float16") == 2
    assert "model.layers.1.mlp.up_proj.weight holds 100000, more than float16" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m"]


def test_a_wrong_file_fails_the_verification(model, tmp_path, monkeypatch, capsys):
    from seed_jax.convert.hugging_face import export as hugging_face

    whole = hugging_face.write_model

    def spoiled(directory, *args):
        whole(directory, *args)
        tensors = load_file(directory / "model.safetensors")
        tensors["model.layers.2.self_attn.q_proj.weight"] = np.ascontiguousarray(
            tensors["model.layers.2.self_attn.q_proj.weight"].T
        )
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(hugging_face, "write_model", spoiled)
    assert export(model, tmp_path / "out", "--verify") == 1
    assert "29 of 30 tensors exact; logits 2." in (out := capsys.readouterr().out)
    assert out.rstrip().endswith("FAILED")
    assert "no: model.layers.2.self_attn.q_proj.weight" in (tmp_path / "out/parity.md").read_text()


def test_bad_requests_give_one_sentence(model, tmp_path, capsys):
    for options, message in [
        (["--peft"], "holds no adapters separate from the model: export it --merged"),
        (["--max-shard-size", "5 apples"], "'5 apples' is not a size"),
    ]:
        assert export(model, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
    assert export(tmp_path, tmp_path / "out") == 2
    assert "neither a model directory nor a training workdir" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    assert export(model, tmp_path / "full") == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
