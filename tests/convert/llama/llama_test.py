"""Import of Hugging Face and peft files: names, shapes, number formats, refusals, the round trip."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.lazy import materialize
from seed_jax.cli import main
from seed_jax.convert.hugging_face.peft import import_adapter, replaced_table
from seed_jax.convert.key_table import disassemble
from seed_jax.convert.llama.hf_export import LLAMA
from seed_jax.convert.llama.hf_import import import_llama, read_config
from seed_jax.convert.llama.key_table import key_table
from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.errors import UserError
from seed_jax.losses.next_token import next_token_loss
from seed_jax.models.llama.model import Llama, LlamaConfig
from tests.support import golden

GOLDEN = LlamaConfig(366, 64, 172, 3, 4, 4, max_length=256)


def edit_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


@pytest.fixture
def source(tmp_path):
    """Return a Hugging Face directory with the recorded weights."""
    directory = tmp_path / "hf"
    directory.mkdir()
    shutil.copy(golden.path("llama_tiny/weights.safetensors"), directory / "model.safetensors")
    shutil.copy(golden.path("llama_tiny/config.json"), directory)
    return edit_config(directory, architectures=["LlamaForCausalLM"])


@pytest.fixture
def adapter(tmp_path):
    directory = tmp_path / "peft"
    directory.mkdir()
    shutil.copy(golden.path("llama_tiny/lora.adapter.safetensors"), directory / "adapter_model.safetensors")
    found = golden.load_json("llama_tiny/lora.config.json")
    kept = {name: found[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    (directory / "adapter_config.json").write_text(json.dumps(kept))
    return directory


def test_round_trip_is_exact(source):
    imported = import_llama(source)
    assert imported.config == GOLDEN
    assert imported.params["embed_tokens"]["embedding"].shape == (384, 64)
    assert not imported.params["embed_tokens"]["embedding"][366:].any()
    assert not imported.params["lm_head"]["kernel"][:, 366:].any()
    back = dict(disassemble(key_table(GOLDEN), imported.params))
    stored = load_file(source / "model.safetensors")
    assert stored.keys() - back.keys() == {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, stored[name], err_msg=name)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_bfloat16_files(source, kind):
    tensors = load_file(source / "model.safetensors")
    half = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    stem = "model" if kind == "safetensors" else "pytorch_model"
    (source / "model.safetensors").unlink()
    shards = {f"{stem}-0000{i + 1}-of-00002.{kind}": list(half)[i::2] for i in range(2)}
    for file, names in shards.items():
        part = {name: torch.tensor(half[name].astype(np.float32)).bfloat16() for name in names}
        if kind == "bin":
            torch.save(part, source / file)
        else:
            save_torch(part, source / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (source / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    params = import_llama(source).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}
    for name, tensor in disassemble(key_table(GOLDEN), params):
        np.testing.assert_array_equal(tensor, half[name], err_msg=name)
    wide = import_llama(source, dtype="float32").params
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype(np.float32)}


def test_every_wrong_tensor_is_listed(source):
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.bias"] = np.zeros(64, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:365]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError) as caught:
        import_llama(source)
    for part in ("missing: model.layers.1.mlp.up_proj.weight", "unexpected: model.norm.bias", "(365, 64)", "(366, 64)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, r"architectures \['MistralForCausalLM'\], expected"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scales its rotary positions"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scales its rotary positions"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True; only False"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ({"head_dim": 32}, "head_dim 32"),
        ({"num_hidden_layers": "3"}, "num_layers.*'3'"),
        ({"architectures": "MyLlamaForCausalLMPlus"}, "architectures"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps.*finite"),
        ({"rope_theta": float("inf")}, "rope_theta.*finite"),
    ],
)
def test_what_this_llama_does_not_compute_is_refused(source, changes, message):
    with pytest.raises(UserError, match=message):
        import_llama(edit_config(source, **changes))


def test_missing_files_and_keys_are_named(source, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.config\.json does not exist"):
        import_llama(tmp_path / "nowhere")
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights: expected model\.safetensors"):
        import_llama(source)
    (source / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "vocab_size": 3}')
    with pytest.raises(UserError, match="lacks hidden_size, intermediate_size"):
        import_llama(source)


def test_wrong_special_ids_of_the_official_config_are_reported(source, caplog):
    caplog.set_level("INFO")
    read_config(source / "config.json")
    assert not caplog.records
    edit_config(source, bos_token_id=0, eos_token_id=1, pad_token_id=-1)  # as the official 8B model has them
    assert read_config(source / "config.json") == GOLDEN
    assert "bos_token_id 1, eos_token_id 2, pad_token_id 0 are used instead" in caplog.text


def test_rotary_base_and_grouped_heads_are_read(source):
    edit_config(
        source, num_key_value_heads=2, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    config = read_config(source / "config.json")
    assert (config.num_kv_heads, config.rope_theta) == (2, 5e5)


def test_adapter_equals_the_recorded_run(source, adapter):
    imported, inputs = import_llama(source), golden.tensors("llama_tiny/inputs.safetensors")
    expected, gradients = (golden.tensors(f"llama_tiny/lora.{name}.safetensors") for name in ("outputs", "grads"))
    lora = import_adapter(LLAMA, adapter, imported.config)
    model = Llama(GOLDEN, lora=lora.spec, remat="full")
    tokens, labels = jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["labels"])[:, 1:]
    valid = inputs["attention_mask"] == 1

    def loss(variables):
        hidden = model.apply(variables, tokens[:, :-1], method="features")
        kernel = variables["params"]["lm_head"]["kernel"]
        counted = labels != -100
        return next_token_loss(
            hidden, kernel, jnp.maximum(labels, 0), counted, vocab_size=366, chunk_size=20
        ).total.mean

    variables = {"params": lora.replace_params(imported.params), "lora": lora.adapters}
    logits = jax.jit(model.apply)(variables, tokens)
    # Logits 1e-4, loss 1e-5, gradients 1e-4 of each norm: ten times the original's own float32 error.
    np.testing.assert_allclose(logits[valid], expected["logits"][valid], atol=1e-4, rtol=0)
    value, found = jax.jit(jax.value_and_grad(loss))(variables)
    assert abs(value - expected["loss"]) < 1e-5
    theirs = dict(disassemble(replaced_table(LLAMA, GOLDEN), found["params"]))
    flat = flatten_dict(found["lora"], sep="/")
    checked = 0
    for name, gradient in gradients.items():
        if ".modules_to_save" in name:
            ours = theirs[name.replace(".modules_to_save.default", "")]
        else:
            layer, group, projection, leaf = name.split("model.layers.")[1].split(".")[:4]
            ours = flat[f"layers/{group}/{projection}/{leaf[-1].lower()}"][int(layer)].T
        assert np.linalg.norm(ours - gradient) < 1e-4 * np.linalg.norm(gradient), name
        checked += 1
    assert checked == 51

    merged = materialize(lora.merge(imported.params))
    logits = jax.jit(Llama(GOLDEN).apply)({"params": merged}, tokens)
    np.testing.assert_allclose(logits[valid], expected["merged_logits"][valid], atol=1e-4, rtol=0)
    recorded = golden.tensors("llama_tiny/lora.merged_weights.safetensors")
    for name, tensor in disassemble(key_table(GOLDEN), merged):
        # W + 2 B A, a sum of 16 products in float32.
        np.testing.assert_allclose(tensor, recorded[name], atol=1e-6, rtol=1e-6, err_msg=name)


def test_adapters_of_another_kind_are_refused(source, adapter):
    path = adapter / "adapter_config.json"
    found = json.loads(path.read_text())
    for changes, message in [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"alora_invocation_tokens": [3, 4]}, "alora_invocation_tokens"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora True"),
        ({"a_variant_of_next_year": {"k": 1}}, "a_variant_of_next_year"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_dropout": 5.0}, r"lora_dropout 5\.0"),
        ({"r": "16"}, "r '16'"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "adapts embed_tokens"),
        ({"r": 8}, r"lora_A\.weight has shape \(16, 64\), expected \(8, 64\)"),
        ({"target_modules": ["q_proj"]}, r"unexpected: .*down_proj\.lora_A"),
    ]:
        path.write_text(json.dumps({**found, **changes}))
        with pytest.raises(UserError, match=message):
            import_adapter(LLAMA, adapter, GOLDEN)
    path.unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json does not exist"):
        import_adapter(LLAMA, adapter, GOLDEN)


def test_full_module_paths_and_initialisations_that_keep_the_base_are_plain_lora(source, adapter):
    """peft saves target_modules="all-linear" as the path of every module."""
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text())
    expected = import_adapter(LLAMA, adapter, GOLDEN)
    paths = [
        f"model.layers.{layer}.{'mlp' if name in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{name}"
        for layer in range(GOLDEN.num_layers)
        for name in content["target_modules"]
    ]
    for changes in ({"target_modules": paths}, {"target_modules": "all-linear"}, {"init_lora_weights": "gaussian"}):
        path.write_text(json.dumps({**content, **changes}))
        assert import_adapter(LLAMA, adapter, GOLDEN).spec == expected.spec
    path.write_text(json.dumps({**content, "use_rslora": True}))
    assert import_adapter(LLAMA, adapter, GOLDEN).spec.scale == pytest.approx(
        content["lora_alpha"] / content["r"] ** 0.5
    )


def test_the_command_writes_a_model_directory(source, adapter, tmp_path, capsys):
    texts = ["a cat on a mat", "a dog in the fog"]
    arguments = ["import", "llama", "--from", str(source), "--out", str(tmp_path / "out"), "--adapter", str(adapter)]
    train_small(texts, source, vocab_size=300, num_codes=60)
    assert main(arguments) == 2
    assert "a vocabulary of 362 tokens but the model has 366" in capsys.readouterr().err
    train_small(texts, tmp_path / "vocabulary", vocab_size=300, num_codes=64)
    arguments += ["--vocabulary", str(tmp_path / "vocabulary"), "--tokenizer", str(tmp_path / "image")]
    assert main(arguments) == 0
    found = model_dir.load(tmp_path / "out", "llama")
    assert LlamaConfig.from_dict(found.config["sizes"]) == GOLDEN
    assert found.config["image_tokenizer"] == "../image"
    assert Vocabulary.load(found.directory).size == 366
    recorded = golden.tensors("llama_tiny/lora.merged_weights.safetensors")["model.norm.weight"]
    np.testing.assert_array_equal(found.params["norm"]["scale"], recorded)
    assert main(arguments) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_git_lfs_pointer_instead_of_the_text_tokenizer_is_named(source, tmp_path, capsys):
    train_small(["a cat on a mat"], source, vocab_size=300, num_codes=64)
    (source / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert main(["import", "llama", "--from", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "tokenizer.model is a Git LFS pointer" in capsys.readouterr().err


def test_an_added_padding_token_does_not_make_image_tokens(source, tmp_path, caplog):
    """Early Llama-2 and Vicuna folders declare <pad> in added_tokens.json."""
    (source / "added_tokens.json").write_text('{"<pad>": 366}')
    assert main(["import", "llama", "--from", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "has no image tokens" in caplog.text


def test_a_base_model_without_image_tokens_comes_without_a_vocabulary(source, tmp_path, caplog):
    assert main(["import", "llama", "--from", str(source), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert "has no image tokens" in caplog.text
    found = model_dir.load(tmp_path / "out", "llama")
    assert found.config["image_tokenizer"] is None
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype(jnp.bfloat16)}
