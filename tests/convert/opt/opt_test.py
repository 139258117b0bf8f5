"""Import and export of OPT, and generation with the imported model."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seed_jax import cli
from seed_jax.checkpoint import model_dir
from seed_jax.convert.hugging_face.peft import import_adapter
from seed_jax.convert.opt.hf_export import OPT
from seed_jax.convert.opt.hf_import import import_opt, open_opt
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.memory_plan import Workload, plan_memory
from seed_jax.models.opt.config import OptConfig
from seed_jax.precision import Precision
from tests.models.opt.cases import GOLDEN, golden_params, recorded, vocabulary
from tests.support import golden


def hugging_face(directory: Path, **changes) -> Path:
    directory.mkdir(exist_ok=True)
    vocabulary().save(directory)
    shutil.copy(golden.path("opt_tiny/model.safetensors"), directory / "model.safetensors")
    config = golden.load_json("opt_tiny/config.json") | {"architectures": ["OPTForCausalLM"]} | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.slow
def test_import_export_and_generation(tmp_path):
    source = hugging_face(tmp_path / "hf")
    assert cli.main(["import", "opt", "--from", str(source), "--out", str(tmp_path / "model")]) == 0
    assert json.loads((tmp_path / "model/config.json").read_text())["kind"] == "opt"
    export = ["export", "opt", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert cli.main([*export, "--max-shard-size", "40KB"]) == 0
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    written = {name: array for shard in shards for name, array in load_file(shard).items()}
    original = golden.tensors("opt_tiny/model.safetensors")
    assert written.keys() == original.keys()
    for name, array in original.items():
        assert (written[name].dtype, written[name].tobytes()) == (array.dtype, array.tobytes()), name
    assert open_opt(tmp_path / "out").config == GOLDEN
    assert "seed-jax import opt --from out --out DIR" in (tmp_path / "out/README.md").read_text()

    generator, expected = Generator.load(tmp_path / "model"), recorded()
    prompt = expected["prompt"][0].tolist()
    (greedy,) = generator.generate([prompt], max_new_tokens=24, mode="none")
    assert list(greedy.ids) == expected["greedy"][0, len(prompt) :].tolist()
    new_tokens = expected["beams5"].shape[1] - len(prompt)
    (best,) = generator.generate([prompt], max_new_tokens=new_tokens, mode="none", beams=5)
    assert list(best.ids) == expected["beams5"][0, len(prompt) :].tolist()
    # Recorded with padding (id 1) on the left; ours is on the right.
    batch = [[token for token in row.tolist() if token != 1] for row in expected["batch_prompt_left_padded"]]
    assert len({len(row) for row in batch}) == 2
    width = expected["batch_prompt_left_padded"].shape[1]
    new_tokens = expected["batch_greedy"].shape[1] - width
    answers = generator.generate(batch, max_new_tokens=new_tokens, mode="none")
    assert [list(answer.ids) for answer in answers] == expected["batch_greedy"][:, width:].tolist()
    # An image is drawn from the grammar, whatever the weights are.
    (image,) = generator.generate([prompt], max_new_tokens=40, num_images=1)
    assert [len(segment.codes) for segment in image.segments if hasattr(segment, "codes")] == [32]


def test_export_loads_in_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    hugging_face(tmp_path / "hf")
    assert cli.main(["import", "opt", "--from", str(tmp_path / "hf"), "--out", str(tmp_path / "model")]) == 0
    assert cli.main(["export", "opt", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 0
    model, report = transformers.OPTForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = recorded()
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(expected["input_ids"][:1].astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(logits, expected["logits"][:1], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_adapters_travel_through_peft_and_reports_pass(tmp_path, capsys):
    """peft's folder in, kept separate; base and adapter out; peft's logits are ours both times (limit 1e-3 sigma)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    source = hugging_face(tmp_path / "hf")
    base = transformers.OPTForCausalLM.from_pretrained(source)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "out_proj", "fc1"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    options = ["--from", str(source), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "model")]
    assert cli.main(["import", "opt", *options, "--unmerged", "--style", "base", "--verify"]) == 0
    command = ["export", "opt", "--model", str(tmp_path / "model"), "--peft", "--verify"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "FAILED" not in capsys.readouterr().out
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert "seed-jax import opt --from out/base --adapter out/adapter --out" in (tmp_path / "out/README.md").read_text()
    assert set(config["target_modules"]) == {"q_proj", "out_proj", "fc1"}
    assert {"embed_tokens", "lm_head"} <= set(config["modules_to_save"])
    # The adapter's copies of the tied table fit together, or the model could not be read.
    adapter = tmp_path / "out/adapter/adapter_model.safetensors"
    tensors = load_file(adapter)
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.lm_head.weight"] + 1
    save_file(tensors, adapter)
    with pytest.raises(UserError, match="tied to its embeddings"):
        import_adapter(OPT, tmp_path / "out/adapter", GOLDEN)


def test_bad_requests_give_one_sentence(tmp_path, capsys):
    source = hugging_face(tmp_path / "hf")
    assert cli.main(["import", "opt", "--from", str(source), "--out", str(tmp_path / "model")]) == 0
    command = ["export", "opt", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--adapter-only"]) == 2
    assert "holds no adapters" in capsys.readouterr().err
    assert cli.main(["export", "llama", *command[2:]]) == 2
    assert "an OPT language model" in capsys.readouterr().err


def test_a_folder_with_the_fast_tokenizer_alone_is_read(tmp_path):
    source = hugging_face(tmp_path / "hf")
    model = {"type": "BPE", "vocab": json.loads((source / "vocab.json").read_text())}
    lines = (source / "merges.txt").read_text().splitlines()[1:]
    (source / "tokenizer.json").write_text(json.dumps({"model": {**model, "merges": lines}}))
    (source / "vocab.json").unlink()
    (source / "merges.txt").unlink()
    assert cli.main(["import", "opt", "--from", str(source), "--out", str(tmp_path / "model")]) == 0
    words = Vocabulary.load(tmp_path / "model")
    assert words.encode("A photo of a dog") == vocabulary().encode("A photo of a dog")


def test_code_vectors_travel_beside_the_model(tmp_path):
    config = dataclasses.replace(GOLDEN, num_codes=64, code_width=8)
    rng = np.random.default_rng(0)
    codes = {
        "code_vectors": rng.standard_normal((64, 8), np.float32),
        "code_proj": {"kernel": rng.standard_normal((8, 32), np.float32), "bias": np.ones(32, np.float32)},
    }
    keys = {"sizes": config.to_dict(), "image_tokenizer": None, "prompt_style": "seed1"}
    model_dir.save(tmp_path / "model", "opt", keys, {**golden_params(), **codes})
    assert cli.main(["export", "opt", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "hf")]) == 0
    found = import_opt(tmp_path / "hf")
    assert found.config == config
    np.testing.assert_array_equal(found.params["code_proj"]["kernel"], codes["code_proj"]["kernel"])
    np.testing.assert_array_equal(found.params["code_vectors"], codes["code_vectors"])
    (tmp_path / "hf/code_projection.safetensors").unlink()
    assert open_opt(tmp_path / "hf").config == GOLDEN  # an ordinary OPT without it


def test_names_without_prefix_and_a_stored_tied_head(tmp_path):
    source = hugging_face(tmp_path / "hf")
    weights = golden.tensors("opt_tiny/model.safetensors")
    released = {name.removeprefix("model."): array for name, array in weights.items()}
    head = {"lm_head.weight": weights["model.decoder.embed_tokens.weight"].copy()}
    save_file(released | head, source / "model.safetensors")
    found = import_opt(source)
    np.testing.assert_array_equal(
        found.params["embed_positions"]["embedding"], golden_params()["embed_positions"]["embedding"]
    )
    head["lm_head.weight"][0, 0] += 1
    save_file(released | head, source / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight differs"):
        open_opt(source)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="model_type"):
        open_opt(hugging_face(tmp_path / "a", model_type="llama"))
    with pytest.raises(UserError, match="activation_function 'gelu'; only 'relu'"):
        open_opt(hugging_face(tmp_path / "b", activation_function="gelu"))
    with pytest.raises(UserError, match="wrong shape"):
        open_opt(hugging_face(tmp_path / "c", ffn_dim=60))
    with pytest.raises(UserError, match=r"missing: model\.decoder\.project_in\.weight"):
        open_opt(hugging_face(tmp_path / "d", word_embed_proj_dim=16))


def test_memory_plan_of_the_full_size():
    plan = plan_memory(
        OptConfig.seed_2b7(), Precision(compute="bfloat16"), Workload(1, prompt_length=64, new_tokens=64)
    )
    assert 4.9 < plan.resident["language model"] / 2**30 < 5.2
