"""Import and export of SEED-1's three files."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seed_jax import cli
from seed_jax.checkpoint.lazy import materialize
from seed_jax.convert.key_table import disassemble
from seed_jax.convert.tokenizer.key_table import key_table
from seed_jax.convert.tokenizer.official_import import import_tokenizer, open_seed1
from seed_jax.convert.tokenizer.parity import forward_checks
from seed_jax.errors import UserError
from seed_jax.inference.image_tokenizer import ImageTokenizer
from tests.models.tokenizer.cases import HEADS, SEED1_FILES, imported_seed1
from tests.support import golden

QFORMER, CODEBOOK, VIT = SEED1_FILES
HEAD_OPTIONS = ["--vit-heads", "4", "--qformer-heads", "4", "--decoder-heads", "4"]


def import_command(qformer, codebook, vit, out) -> list[str]:
    files = ["--qformer", str(qformer), "--codebook", str(codebook), "--vit", str(vit), "--out", str(out)]
    return ["import", "tokenizer", "--seed1", *files, *HEAD_OPTIONS]


def official() -> dict[str, np.ndarray]:
    vit = {f"visual_encoder.{name}": array for name, array in golden.tensors(VIT).items()}
    return vit | golden.tensors(QFORMER) | golden.tensors(CODEBOOK)


def params_of(tokenizer) -> dict[str, np.ndarray]:
    return dict(disassemble(key_table(tokenizer.config), materialize(tokenizer.params)))


def test_sizes_are_read_off_the_shapes():
    recorded, config = golden.load_json("seed1_tiny/config.json"), imported_seed1().config
    assert config.head == "text_features"
    assert not config.reconstruction
    assert config.image_size == recorded["image_size"]
    assert config.qformer.depth == recorded["qformer_layers"]
    assert config.qformer.causal
    assert config.decoder.depth == recorded["decode_depth"]
    assert config.reverse.depth == recorded["reverse_layers"]
    assert not config.reverse.causal
    assert config.embedding_shape == (recorded["reverse_tokens"], recorded["text_features_dim"])
    assert not imported_seed1().extras
    assert not imported_seed1().unknown


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_import_and_export_of_files_are_bit_identical(tmp_path, form):
    sources = [golden.path(name) for name in SEED1_FILES]
    if form == "pt":
        torch = pytest.importorskip("torch")
        for index, wrap in enumerate((True, True, False)):
            state = {name: torch.from_numpy(array) for name, array in load_file(sources[index]).items()}
            sources[index] = tmp_path / sources[index].with_suffix(".pth").name
            torch.save({"model": state} if wrap else state, sources[index])
    assert cli.main(import_command(*sources, tmp_path / "model")) == 0
    export = ["export", "tokenizer", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert cli.main([*export, "--format", form]) == 0
    for source in sources:
        original = golden.tensors(f"seed1_tiny/{source.stem}.safetensors")
        if form == "pt":
            state = torch.load(tmp_path / "out" / source.name, weights_only=True)
            assert (set(state) == {"model"}) == (source.stem != "eva_vit_g")
            written = {name: tensor.numpy() for name, tensor in state.get("model", state).items()}
        else:
            written = load_file(tmp_path / "out" / source.name)
        assert written.keys() == original.keys()
        for name, array in original.items():
            assert (written[name].dtype, written[name].tobytes()) == (array.dtype, array.tobytes()), name
    provenance = json.loads((tmp_path / "model/config.json").read_text())["provenance"]
    assert provenance["codebook"] == str(sources[1])
    suffix = "safetensors" if form == "safetensors" else "pth"
    files = f"--qformer out/causal_qformer.{suffix} --codebook out/seed_tokenizer.{suffix} --vit out/eva_vit_g.{suffix}"
    command = f"seed-jax import tokenizer --seed1 {files} {' '.join(HEAD_OPTIONS)} --out DIR"
    assert command in (tmp_path / "out/README.md").read_text()
    assert not (tmp_path / "out/load_in_pytorch.py").exists()


@pytest.mark.slow
def test_images_become_codes_and_codes_become_text_features(tmp_path):
    assert cli.main(import_command(*map(golden.path, SEED1_FILES), tmp_path / "model")) == 0
    tokenizer = ImageTokenizer.load(tmp_path / "model", batch_size=2)
    assert tokenizer.preprocessing.interpolation == "bicubic"
    expected = golden.tensors("seed1_tiny/outputs.safetensors")
    embeddings = tokenizer.embed_codes(expected["indices"])
    np.testing.assert_allclose(embeddings, expected["generation_embedding"], rtol=0, atol=5e-5)
    assert tokenizer.embed_codes(np.zeros((0, 32), np.int32)).shape == (0, 77, 768)
    assert tokenizer.encode_pixels(np.zeros((1, 56, 56, 3), np.uint8)).shape == (1, 32)


def test_both_sides_of_a_parity_report_agree():
    pytest.importorskip("torch")
    tokenizer = imported_seed1()
    for check in forward_checks(tokenizer.config, tokenizer.params, tokenizer.tensors):
        assert check.passed, check
        assert check.value <= 0.01 * check.limit, check


def test_stage_two_wins_where_both_files_hold_a_tensor(tmp_path):
    qformer, codebook = golden.tensors(QFORMER), golden.tensors(CODEBOOK)
    codebook["ln_vision.bias"] = qformer["ln_vision.bias"] + 1
    save_file(codebook, tmp_path / "seed_tokenizer.safetensors")
    found = open_seed1(golden.path(QFORMER), tmp_path / "seed_tokenizer.safetensors", golden.path(VIT), **HEADS)
    np.testing.assert_array_equal(params_of(found)["ln_vision.bias"], qformer["ln_vision.bias"] + 1)


def test_reconstruction_blocks_are_kept_where_the_file_has_them(tmp_path):
    codebook = golden.tensors(CODEBOOK)
    extra = {name.replace("blocks_text", "blocks"): array for name, array in codebook.items() if "blocks_text" in name}
    extra["pos_embed"] = codebook["pos_embed_text"]
    save_file(codebook | extra, tmp_path / "seed_tokenizer.safetensors")
    found = open_seed1(golden.path(QFORMER), tmp_path / "seed_tokenizer.safetensors", golden.path(VIT), **HEADS)
    assert found.config.reconstruction
    assert params_of(found).keys() >= extra.keys()


def test_twelve_layer_reverse_qformer_is_read_as_such(tmp_path):
    codebook = golden.tensors(CODEBOOK)
    deeper = {name.replace("layer.", "layer.1", 1): a for name, a in codebook.items() if "encoder.layer.0" in name}
    deeper |= {name.replace("layer.", "layer.1", 1): a for name, a in codebook.items() if "encoder.layer.1" in name}
    renamed = {name.replace("layer.10", "layer.4").replace("layer.11", "layer.5"): a for name, a in deeper.items()}
    save_file(codebook | renamed, tmp_path / "seed_tokenizer.safetensors")
    found = open_seed1(golden.path(QFORMER), tmp_path / "seed_tokenizer.safetensors", golden.path(VIT), **HEADS)
    assert found.config.reverse.depth == 6
    assert not found.unknown


def test_files_of_the_other_tokenizer_and_interchanged_files_are_refused(tmp_path):
    seed2 = golden.path("tokenizer_tiny/release.weights.safetensors")
    with pytest.raises(UserError, match=r"holds SEED-2's tokenizer.*--quantizer"):
        open_seed1(golden.path(QFORMER), seed2, golden.path(VIT), **HEADS)
    with pytest.raises(UserError, match="interchanged with --qformer"):
        open_seed1(golden.path(CODEBOOK), golden.path(QFORMER), golden.path(VIT), **HEADS)
    with pytest.raises(UserError, match=r"do not hold the ViT.*--vit"):
        open_seed1(golden.path(QFORMER), golden.path(CODEBOOK), **HEADS)
    save_file(official(), tmp_path / "all.safetensors")
    with pytest.raises(UserError, match=r"holds SEED-1's tokenizer.*--seed1"):
        import_tokenizer(tmp_path / "all.safetensors", **HEADS)


def test_missing_tensors_and_options_are_named(tmp_path, capsys):
    codebook = golden.tensors(CODEBOOK)
    del codebook["blocks_text.2.norm1.bias"]
    save_file(codebook, tmp_path / "seed_tokenizer.safetensors")
    with pytest.raises(UserError, match=r"missing: blocks_text\.2\.norm1\.bias"):
        open_seed1(golden.path(QFORMER), tmp_path / "seed_tokenizer.safetensors", golden.path(VIT), **HEADS)
    assert cli.main(["import", "tokenizer", "--seed1", "--qformer", "a.pth", "--out", str(tmp_path / "x")]) == 2
    assert "--codebook missing" in capsys.readouterr().err
    assert cli.main(["import", "tokenizer", "--out", str(tmp_path / "x")]) == 2
    assert "--quantizer missing" in capsys.readouterr().err
