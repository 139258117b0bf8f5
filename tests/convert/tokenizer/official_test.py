import json
import logging
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seed_jax import cli
from seed_jax.convert.key_table import disassemble, expected_shapes
from seed_jax.convert.tokenizer.key_table import buffers, key_table
from seed_jax.convert.tokenizer.official_import import import_tokenizer
from seed_jax.errors import UserError
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from tests.models.tokenizer.cases import HEADS, imported
from tests.support import golden

RELEASE = "tokenizer_tiny/release.weights.safetensors"
VIT = "visual_encoder."


def test_full_size_table_is_the_official_manifest():
    """Spec K.1: 881 keys, 1 149 999 040 elements, 512 of them int64."""
    config = SeedTokenizerConfig.full()
    shapes = expected_shapes(key_table(config), abstract_params(config))
    positions = {name: array.shape for name, array in buffers(config).items()}
    assert positions == {"Qformer.bert.embeddings.position_ids": (1, 512)}
    everything = shapes | positions
    assert len(everything) == 881
    assert sum(math.prod(shape) for shape in everything.values()) == 1_149_999_040
    assert sum(name.startswith(VIT) for name in everything) == 511
    # One of each kind of the table in A.8.1, in PyTorch's layout.
    literal = {
        "query_tokens": (1, 32, 768),
        "pos_embed_image": (1, 32, 768),
        f"{VIT}cls_token": (1, 1, 1408),
        f"{VIT}pos_embed": (1, 257, 1408),
        f"{VIT}patch_embed.proj.weight": (1408, 3, 14, 14),
        f"{VIT}blocks.38.attn.q_bias": (1408,),
        f"{VIT}blocks.0.attn.qkv.weight": (4224, 1408),
        f"{VIT}blocks.38.mlp.fc1.weight": (6144, 1408),
        "Qformer.bert.encoder.layer.11.attention.self.key.weight": (768, 768),
        "Qformer.bert.encoder.layer.10.crossattention.self.value.weight": (768, 1408),
        "Qformer.bert.encoder.layer.11.intermediate_query.dense.weight": (3072, 768),
        "Qformer.bert.encoder.layer.11.output_query.LayerNorm.bias": (768,),
        "quantize.embedding.weight": (8192, 32),
        "encode_task_layer.2.weight": (32, 768),
        "decode_task_layer.2.weight": (768, 32),
        "blocks.3.attn.qkv.bias": (2304,),
        "blocks_image.3.mlp.fc2.weight": (768, 3072),
        "image_down.4.weight": (32, 128),
        "distill_image_proj.weight": (1024, 1024),
    }
    assert {name: everything.get(name) for name in literal} == literal
    assert "Qformer.bert.encoder.layer.1.crossattention.self.key.weight" not in everything


@pytest.mark.parametrize("variant", ["release", "qformer_image"])
def test_there_and_back_is_bit_identical(variant):
    original = golden.tensors(f"tokenizer_tiny/{variant}.weights.safetensors")
    tokenizer = imported(variant)
    back = dict(disassemble(key_table(tokenizer.config), tokenizer.params)) | buffers(tokenizer.config)
    assert back.keys() == original.keys()
    for name, array in original.items():
        assert back[name].dtype == array.dtype, name
        assert back[name].tobytes() == array.tobytes(), name
    assert not tokenizer.extras
    assert not tokenizer.unknown


def test_sizes_are_read_off_the_shapes():
    recorded, config = golden.load_json("tokenizer_tiny/config.json"), imported("qformer_image").config
    assert config.image_size == recorded["image_size"]
    assert config.vit.patch_size == recorded["patch_size"]
    assert config.vit.blocks.depth == recorded["vit_depth"]
    assert config.vit.blocks.mlp_width == recorded["vit_mlp_hidden"]
    assert config.qformer.depth == recorded["qformer_layers"]
    assert config.qformer.cross_attention_every == recorded["cross_attention_freq"]
    assert config.qformer.max_positions == recorded["max_position_embeddings"]
    assert config.qformer.causal
    assert (config.num_codes, config.code_width) == (recorded["n_embed"], recorded["codebook_embed_dim"])
    assert config.decoder.depth == recorded["decode_depth"]
    assert config.head == "reverse_qformer"
    assert config.reverse.num_queries == 1
    assert not config.reverse.causal
    assert config.embedding_width == recorded["image_features_dim"]


def same_params(a, b):
    a, b = (dict(disassemble(key_table(t.config), t.params)) for t in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def split(tmp_path):
    """The released way: the image encoder in a file of its own, without prefix."""
    weights = golden.tensors(RELEASE)
    encoder = {name.removeprefix(VIT): array for name, array in weights.items() if name.startswith(VIT)}
    rest = {name: array for name, array in weights.items() if not name.startswith(VIT)}
    return rest, encoder


def test_torch_files_of_the_released_form(split, tmp_path):
    torch = pytest.importorskip("torch")
    rest, encoder = ({n: torch.from_numpy(a) for n, a in part.items()} for part in split)
    torch.save(rest, tmp_path / "seed_quantizer.pt")
    torch.save({"model": encoder}, tmp_path / "eva_vit_g.pth")
    found = import_tokenizer(tmp_path / "seed_quantizer.pt", tmp_path / "eva_vit_g.pth", **HEADS)
    assert found.config == imported("release").config
    same_params(found, imported("release"))


def test_known_extras_are_kept_aside_and_unknown_ones_listed(tmp_path, caplog):
    weights = golden.tensors(RELEASE)
    row = np.ones((2, 3), np.float32)
    extras = {
        "temp": np.array(0.07, np.float32),
        "vision_proj.weight": row,
        "text_proj.bias": row,
        "pos_embed_text": row,
        "blocks_text.3.mlp.fc1.weight": row,
        "Reverse_Qformer_text.bert.encoder.layer.3.attention.self.key.bias": row,
        "reverse_tokens_text": row,
        "distill_text_proj.weight": row,
        "Qformer.bert.encoder.layer.11.intermediate.dense.weight": row,
        "Qformer.bert.encoder.layer.11.output.LayerNorm.weight": row,
        "Qformer.bert.embeddings.word_embeddings.weight": row,
        "Qformer.cls.predictions.decoder.weight": row,
    }
    positions = {"clip.vision_model.embeddings.position_ids": np.arange(257)[None]}
    save_file(weights | extras | positions | {"surprise": row, "blocks.0.gamma": row}, tmp_path / "q.safetensors")
    found = import_tokenizer(tmp_path / "q.safetensors", **HEADS)
    assert found.extras.keys() == extras.keys()  # buffers that only count are dropped
    np.testing.assert_array_equal(found.extras["temp"].read(), np.float32(0.07))
    assert found.unknown == ["blocks.0.gamma", "surprise"]
    assert "Ignored 2 tensors that nobody expects: surprise, blocks.0.gamma" in caplog.text
    same_params(found, imported("release"))


def test_fortieth_block_is_ignored_with_a_message(split, tmp_path, caplog):
    rest, encoder = split
    blocks = {name: array for name, array in encoder.items() if name.startswith("blocks.0.")}
    encoder = {name: array for name, array in encoder.items() if not name.startswith("blocks.")}
    for layer in range(40):
        encoder |= {name.replace(".0.", f".{layer}.", 1): array + layer for name, array in blocks.items()}
    save_file(rest, tmp_path / "q.safetensors")
    save_file(encoder, tmp_path / "vit.safetensors")
    caplog.set_level(logging.INFO)
    found = import_tokenizer(tmp_path / "q.safetensors", tmp_path / "vit.safetensors", **HEADS)
    assert found.config.vit.blocks.depth == 39
    assert "has 40 blocks; SEED uses 39" in caplog.text
    assert not found.unknown
    stacked = found.params["vit"]["blocks"]["layers"]["norm1"]["bias"]
    np.testing.assert_array_equal(stacked[38], blocks["blocks.0.norm1.bias"] + 38)


def test_missing_encoder_and_foreign_files_are_refused(split, tmp_path):
    rest, encoder = split
    save_file(rest, tmp_path / "q.safetensors")
    save_file(encoder, tmp_path / "vit.safetensors")
    with pytest.raises(
        UserError, match=r"does not hold the image encoder: give its file \(eva_vit_g\.pth\) with --vit"
    ):
        import_tokenizer(tmp_path / "q.safetensors", **HEADS)
    with pytest.raises(UserError, match=r"is not a SEED tokenizer: it lacks .*query_tokens"):
        import_tokenizer(tmp_path / "vit.safetensors", tmp_path / "vit.safetensors", **HEADS)


def test_every_wrong_tensor_is_named_at_once(tmp_path):
    weights = golden.tensors(RELEASE)
    del weights["blocks.1.norm1.weight"], weights["pos_embed"]
    weights["ln_vision.bias"] = weights["ln_vision.bias"][:-1]
    save_file(weights, tmp_path / "q.safetensors")
    with pytest.raises(UserError) as raised:
        import_tokenizer(tmp_path / "q.safetensors", **HEADS)
    assert "missing: pos_embed, blocks.1.norm1.weight; misshapen: ln_vision.bias is (63,), expected (64,)" in str(
        raised.value
    )


def test_text_side_becomes_part_of_the_qformer_when_asked_for(tmp_path):
    stage1 = golden.tensors("tokenizer_train_tiny/stage1.weights.safetensors")
    text = {
        name: array
        for name, array in stage1.items()
        if ".intermediate." in name or ".output.dense" in name or ".output.LayerNorm" in name or "_embeddings." in name
    }
    save_file(golden.tensors(RELEASE) | text, tmp_path / "q.safetensors")
    found = import_tokenizer(tmp_path / "q.safetensors", **HEADS, text=True)
    assert found.config.qformer.vocab_size == 106
    assert not found.extras
    assert found.params["qformer"]["word_embeddings"].shape == (106, 48)
    aside = import_tokenizer(tmp_path / "q.safetensors", **HEADS)
    assert aside.config.qformer.vocab_size == 0
    assert "Qformer.bert.embeddings.word_embeddings.weight" in aside.extras


def test_command_writes_a_model_directory(tmp_path, capsys):
    save_file(golden.tensors(RELEASE) | {"temp": np.float32([0.07])}, tmp_path / "q.safetensors")
    heads = ["--vit-heads", "4", "--qformer-heads", "4", "--decoder-heads", "4"]
    command = ["import", "tokenizer", "--quantizer", str(tmp_path / "q.safetensors"), "--out", str(tmp_path / "model")]
    assert cli.main(command + heads) == 0
    assert ImageTokenizer.load(tmp_path / "model").config == imported("release").config
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["provenance"]["quantizer"] == str(tmp_path / "q.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "model/extras.safetensors")["temp"], np.float32([0.07]))
    assert cli.main(command + heads) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "other"), "--qformer-heads", "5"]) == 2
    assert "divisible by its heads" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
