"""A GGUF file holds the model as llama.cpp expects it: another reader computes the same logits from it."""

import jax
import numpy as np
import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.cli import main
from seed_jax.convert.llama.gbnf import image_grammar
from seed_jax.convert.llama.gguf_export import interleave_rotary_halves
from seed_jax.convert.llama.key_table import abstract_params
from seed_jax.convert.tensors import open_tensors, weight_files
from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.models.llama.model import Llama, LlamaConfig
from tests.convert.llama import cases
from tests.support import golden

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return cases.hugging_face(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, source):
    out = tmp_path_factory.mktemp("model") / "m"
    assert main(["import", "llama", "--from", str(source), "--out", str(out)]) == 0
    return out


def export(model, out, *options):
    return main(["export", "llama", "--model", str(model), "--format", "gguf", "--out", str(out), *options])


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("gguf") / "m.gguf"
    assert export(model, out, "--dtype", "float32") == 0
    return out


def test_transformers_computes_the_recorded_logits_from_the_file(exported):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported.parent, gguf_file=exported.name).eval()
    inputs = golden.tensors("llama_tiny/inputs.safetensors")
    with torch.no_grad():
        logits = loaded(torch.from_numpy(inputs["input_ids"]).long()).logits.numpy()
    valid = inputs["attention_mask"] == 1
    expected = golden.tensors("llama_tiny/outputs.safetensors")["logits"]
    np.testing.assert_allclose(logits[valid], expected[valid], atol=1e-4)


def test_the_file_has_every_token_and_only_the_weights_llama_cpp_knows(exported, model, source):
    reader = gguf.GGUFReader(exported)
    vocabulary = Vocabulary.load(model)
    field = reader.fields["tokenizer.ggml.tokens"]
    tokens = [bytes(field.parts[index]).decode() for index in field.data]
    assert len(tokens) == vocabulary.size
    assert tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert tokens[vocabulary.boi] == "<img>"
    assert tokens[vocabulary.first_code + 5] == "<img_00005>"
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert {types[i] for i in range(vocabulary.first_code, vocabulary.size)} == {gguf.TokenType.USER_DEFINED}
    names = {tensor.name for tensor in reader.tensors}
    layers = reader.fields["llama.block_count"].contents()
    assert len(names) == 3 + 9 * layers
    heads = reader.fields["llama.attention.head_count"].contents()
    original = open_tensors(weight_files(source))
    query = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight")
    expected = interleave_rotary_halves(original["model.layers.0.self_attn.q_proj.weight"].read(), heads)
    np.testing.assert_array_equal(query.data, expected)


def test_the_image_grammar_is_written_beside_the_file(model, exported, capsys):
    grammar = exported.with_suffix(".gbnf")
    assert grammar.read_text() == image_grammar(Vocabulary.load(model).num_codes)
    other = exported.with_name("other.gguf")
    other.with_suffix(".gbnf").write_text("mine")
    assert export(model, other) == 2
    assert "other.gbnf exists" in capsys.readouterr().err
    assert not other.exists()
    other.with_suffix(".gbnf").unlink()


def test_rotary_rows_are_neighbours():
    rows = np.arange(8)[:, None]
    assert interleave_rotary_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_matrices_are_stored_in_the_dtype_and_vectors_in_float32(model, tmp_path, dtype, kind):
    assert export(model, tmp_path / "m.gguf", "--dtype", dtype) == 0
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {(len(tensor.shape), tensor.tensor_type.name) for tensor in reader.tensors} == {(1, "F32"), (2, kind)}


def test_q8_0_needs_widths_in_blocks_of_32(model, tmp_path, capsys):
    assert export(model, tmp_path / "m.gguf", "--dtype", "q8_0") == 2  # its intermediate size is 172
    assert "multiples of 32" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_q8_0_keeps_the_logits_close(tmp_path):
    config = LlamaConfig(830, 64, 96, 2, 4, 2, max_length=64)
    model, vocabulary_files = tmp_path / "model", tmp_path / "vocabulary"
    vocabulary_files.mkdir()
    train_small(["a cat on a mat in a hat", "a dog in the fog on a log"], vocabulary_files, 300, 528)
    rng = np.random.Generator(np.random.Philox(7))
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), abstract_params(config))
    model_dir.save(model, ModelKind.LLAMA, {"sizes": config.to_dict()}, params)
    Vocabulary.load(vocabulary_files).save(model)
    assert export(model, tmp_path / "q" / "m.gguf", "--dtype", "q8_0") == 0
    tokens = rng.integers(3, 800, (1, 24))
    ours = Llama(config).apply({"params": params}, jax.numpy.asarray(tokens))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q", gguf_file="m.gguf").eval()
    with torch.no_grad():
        theirs = loaded(torch.from_numpy(tokens)).logits.numpy()
    ours = np.asarray(ours)[..., : config.vocab_size]
    # Eight bits leave about 1 % of the logits' norm; a wrong layout would leave 100 %.
    assert np.linalg.norm(theirs - ours) < 0.03 * np.linalg.norm(ours)


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--peft",), "merged"), (("--verify",), "merged"), (("--base", "x"), "merged")],
)
def test_what_a_gguf_file_cannot_hold_is_refused(model, tmp_path, capsys, options, words):
    assert export(model, tmp_path / "m.gguf", *options) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(model, tmp_path, capsys):
    (tmp_path / "m.gguf").write_text("mine")
    assert export(model, tmp_path / "m.gguf") == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "m.gguf").read_text() == "mine"
    assert main(["export", "llama", "--model", str(model), "--dtype", "q8_0", "--out", str(tmp_path / "o")]) == 2
