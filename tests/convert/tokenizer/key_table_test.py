"""Official names of stage I and the text branch: what the released file holds beside the image tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax import sharding
from seed_jax.convert.key_table import assemble, disassemble, expected_shapes, to_torch_tensors
from seed_jax.convert.tokenizer import key_table as tables
from seed_jax.convert.tokenizer.key_table import key_table
from seed_jax.convert.tokenizer.official_import import EXTRA_NAMES
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.qformer import QFormerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.tokenizer.text_branch import TextBranch, TextBranchConfig
from seed_jax.models.tokenizer.vit import BlockConfig


def shapes(module, *inputs):
    return sharding.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]


def full_shapes():
    config = ImageTextConfig()
    image, text = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 4), jnp.int32)
    return expected_shapes(tables.image_text_table(config), shapes(ImageText(config), image, text))


def branch_shapes():
    config = TextBranchConfig()
    return expected_shapes(tables.text_branch_table(config), shapes(TextBranch(config), jnp.zeros((1, 32, 768))))


def test_released_sizes_and_counts():
    text_side, branch = full_shapes(), branch_shapes()
    assert text_side["temp"] == ()
    assert text_side["vision_proj.weight"] == text_side["text_proj.weight"] == (256, 768)
    assert text_side["Qformer.bert.embeddings.word_embeddings.weight"] == (30523, 768)
    assert text_side["Qformer.bert.embeddings.position_embeddings.weight"] == (512, 768)
    assert branch["reverse_tokens_text"] == (1, 77, 768)
    assert branch["pos_embed_text"] == (1, 32, 768)
    assert branch["distill_text_proj.weight"] == (768, 768)
    # Spec A.8.2: 49 + 1 + 87 + 2 tensors, one of which is a buffer of positions.
    assert len(branch) + 1 == 49 + 1 + 87 + 2
    text_ffn = [name for name in text_side if ".intermediate." in name or ".output." in name]
    assert len([name for name in text_ffn if "attention" not in name]) == 72


def test_other_official_tensors_are_known_as_extras():
    tokenizer = {name for entry in key_table(SeedTokenizerConfig()) for name in entry.names}
    for name in full_shapes().keys() | branch_shapes().keys():
        assert name in tokenizer or EXTRA_NAMES.fullmatch(name), name


def test_there_and_back_is_the_same():
    decoder = BlockConfig(16, 2, 2, 24, key_bias=True)
    reverse = QFormerConfig(5, causal=False, width=16, depth=2, heads=2, mlp_width=24, memory_width=16)
    config = TextBranchConfig(8, decoder, reverse, state_width=12)
    table = tables.text_branch_table(config)
    empty = shapes(TextBranch(config), jnp.zeros((1, 8, 16)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), empty)
    again = assemble(table, to_torch_tensors(table, params, "test"), empty)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    official = dict(disassemble(table, params))
    np.testing.assert_array_equal(
        official["blocks_text.1.mlp.fc1.weight"], params["blocks"]["layers"]["mlp"]["fc1"]["kernel"][1].T
    )


def test_a_scalar_stays_a_scalar():
    entry = tables.retrieval_table()[-1]
    assert dict(disassemble([entry], {"temperature": np.float32(0.05).reshape(())}))["temp"].shape == ()
