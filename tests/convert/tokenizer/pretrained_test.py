"""Foreign starting points: each fills the parameters it should, in its own dialect of names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from seed_jax import sharding
from seed_jax.convert.key_table import disassemble
from seed_jax.convert.tokenizer import pretrained
from seed_jax.convert.tokenizer.key_table import image_text_table
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.vit import BlockConfig, VitConfig

CONFIG = ImageTextConfig(
    VitConfig(28, 14, BlockConfig(16, 2, 2, 24)),
    QFormerConfig(8, width=16, depth=4, heads=2, mlp_width=24, memory_width=16, vocab_size=21, max_positions=12),
    joint_width=6,
)
TABLE = image_text_table(CONFIG)


@functools.cache
def abstract():
    image, text = jnp.zeros((1, 28, 28, 3)), jnp.zeros((1, 4), jnp.int32)
    return sharding.unbox(jax.eval_shape(ImageText(CONFIG).init, jax.random.key(0), image, text))["params"]


@functools.cache
def official() -> dict[str, np.ndarray]:
    """Return random weights under the names of the original."""
    rng = np.random.default_rng(0)
    return dict(disassemble(TABLE, jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract())))


def read(kind, path):
    return flatten_dict(pretrained.read(kind, path, TABLE, abstract()), sep="/")


def stored(tmp_path, tensors, name="weights.safetensors"):
    save_file({key: np.asarray(value, order="C") for key, value in tensors.items()}, tmp_path / name)
    return tmp_path / name


def test_vit_without_prefix_and_with_a_spare_block(tmp_path):
    tensors = {k.removeprefix("visual_encoder."): v for k, v in official().items() if k.startswith("visual_encoder.")}
    spare = {k.replace("blocks.1.", "blocks.2."): v for k, v in tensors.items() if k.startswith("blocks.1.")}
    found = read("vit", stored(tmp_path, {**tensors, **spare, "head.weight": np.zeros((2, 2), np.float32)}))
    assert {path for path in flatten_dict(abstract(), sep="/") if path.startswith("vit/")} == found.keys()
    expected = official()["visual_encoder.blocks.1.mlp.fc1.weight"].T
    np.testing.assert_array_equal(found["vit/blocks/layers/mlp/fc1/kernel"][1], expected)


def bert(dialect):
    """Return what a BERT-base file of a dialect of names holds: no queries, and no row for [DEC]."""
    names = ("embeddings.", "attention.", ".intermediate.", ".output.")
    tensors = {k: v for k, v in official().items() if k.startswith("Qformer.") and any(name in k for name in names)}
    tensors = {k.removeprefix("Qformer."): v for k, v in tensors.items() if "crossattention" not in k}
    words = "bert.embeddings.word_embeddings.weight"
    tensors[words] = tensors[words][:-1]
    if dialect == "gamma":  # bert-base-uncased as published
        return {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in tensors.items()
        }
    return {k.removeprefix("bert."): v for k, v in tensors.items()}  # BertModel alone


@pytest.mark.parametrize("dialect", ["gamma", "bare"])
def test_bert_fills_text_and_queries(tmp_path, dialect):
    stored(tmp_path, {**bert(dialect), "cls.predictions.bias": np.zeros(3, np.float32)}, "model.safetensors")
    found = read("bert", tmp_path)
    queries = found["qformer/layers/layer_1/query_ffn/mlp/fc2/kernel"]
    np.testing.assert_array_equal(queries, found["qformer/layers/layer_1/text_ffn/mlp/fc2/kernel"])
    expected = official()["Qformer.bert.encoder.layer.1.output.dense.weight"].T
    np.testing.assert_array_equal(queries[0], expected)
    words = official()["Qformer.bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(found["qformer/word_embeddings"][:-1], words[:-1])
    assert 0 < np.abs(found["qformer/word_embeddings"][-1]).max() < 0.2  # drawn from N(0, 0.02)
    untouched = {"qformer/query_tokens", "temperature"} | {p for p in found if "cross_attention" in p}
    assert not untouched & found.keys()


def test_blip2_is_wrapped_and_brings_the_temperature(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {k: torch.from_numpy(v.copy()) for k, v in official().items() if not k.startswith("visual_encoder.")}
    torch.save({"model": {**tensors, "itm_head.weight": torch.zeros(2, 16)}}, tmp_path / "blip2.pth")
    found = read("blip2", tmp_path / "blip2.pth")
    assert not any(path.startswith("vit/") for path in found)
    assert found["temperature"].shape == ()
    np.testing.assert_array_equal(found["temperature"], official()["temp"])
    np.testing.assert_array_equal(found["qformer/query_tokens"], official()["query_tokens"][0])


def test_what_is_missing_or_misshapen_is_named(tmp_path):
    tensors = {k: v for k, v in official().items() if not k.startswith("visual_encoder.")}
    del tensors["Qformer.bert.encoder.layer.0.crossattention.self.key.weight"]
    tensors["query_tokens"] = np.zeros((1, 9, 16), np.float32)
    with pytest.raises(
        UserError, match=r"missing: .*layer\.0\.crossattention.*misshapen: query_tokens is \(1, 9, 16\)"
    ):
        read("blip2", stored(tmp_path, tensors))


def test_a_half_given_stack_is_refused(tmp_path):
    tensors = dict(official())
    del tensors["Qformer.bert.encoder.layer.1.intermediate.dense.weight"]
    with pytest.raises(UserError, match=r"missing: Qformer\.bert\.encoder\.layer\.1\.intermediate\.dense\.weight"):
        read("quantizer", stored(tmp_path, tensors))


def test_unknown_kind():
    with pytest.raises(UserError, match=r"'gpt'.*vit, bert, blip2, quantizer"):
        read("gpt", "x.safetensors")
