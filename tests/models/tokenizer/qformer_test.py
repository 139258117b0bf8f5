"""The Q-Former: its masks as literals, causality proven by gradients, parity with the original, dropout, remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from seed_jax.convert.key_table import Entry, Layout
from seed_jax.convert.tokenizer.key_table import qformer_entries
from seed_jax.errors import UserError
from seed_jax.models.nn.attention import attend
from seed_jax.models.tokenizer.qformer import QFormer, QFormerConfig, attention_mask
from tests.models.tokenizer.cases import imported, random_like, read
from tests.support import golden

SMALL = QFormerConfig(
    num_queries=5, width=16, depth=4, heads=2, mlp_width=24, memory_width=12, vocab_size=11, max_positions=8
)
TEXT = jnp.array([[3, 7, 2, 9], [5, 1, 0, 0]])
TEXT_MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
MEMORY = jax.random.normal(jax.random.key(3), (2, 7, 12))


def shapes_of(config):
    memory = jnp.zeros((1, 2, config.memory_width))
    return meta.unbox(jax.eval_shape(QFormer(config).init, jax.random.key(0), memory))["params"]


@functools.cache
def small_params():
    return random_like(shapes_of(SMALL))


# The rows of the table in spec A.4, with three queries and a text of three tokens whose last is padding.
PADDED = jnp.array([[True, True, False]])
MASKS = {
    "queries": (
        {"num_queries": 3, "causal": True},
        ["100", "110", "111"],
    ),
    "queries and text": (
        {"num_queries": 3, "text_mask": PADDED, "causal": True},
        ["100110", "110110", "111110", "111110", "111110", "111110"],
    ),
    "text": (
        {"num_queries": 0, "text_mask": PADDED, "causal": True},
        ["110", "110", "110"],
    ),
    "captioning": (
        {"num_queries": 3, "text_mask": PADDED, "causal": True, "autoregressive": True},
        ["100000", "110000", "111000", "111100", "111110", "111110"],
    ),
    "reverse queries": (
        {"num_queries": 3, "causal": False},
        ["111", "111", "111"],
    ),
}


@pytest.mark.parametrize("case", MASKS)
def test_mask_equals_the_table(case):
    arguments, rows = MASKS[case]
    assert np.asarray(attention_mask(**arguments))[0, 0].astype(int).tolist() == [list(map(int, row)) for row in rows]


def test_mask_hides_the_padding_of_each_text():
    mask = np.asarray(attention_mask(2, TEXT_MASK, causal=True))
    assert mask.shape == (2, 1, 6, 6)
    assert mask[0, 0, 5].tolist() == [True] * 6
    assert mask[1, 0, 5].tolist() == [True] * 4 + [False] * 2


def query_jacobian(**inputs) -> np.ndarray:
    """Return [i, j]: the gradient of output query i with respect to query token j, summed over features."""

    def outputs(tokens):
        return QFormer(SMALL).apply({"params": {**small_params(), "query_tokens": tokens}}, MEMORY, **inputs).queries

    jacobian = jax.jit(jax.jacobian(lambda tokens: outputs(tokens)[0].sum(-1)))(small_params()["query_tokens"])
    return np.abs(jacobian).sum(-1)


@pytest.mark.parametrize("inputs", [{}, {"text": TEXT, "text_mask": TEXT_MASK, "autoregressive": True}])
def test_query_sees_only_itself_and_earlier_queries(inputs):
    jacobian = query_jacobian(**inputs)
    assert not np.any(np.triu(jacobian, k=1))
    assert np.all(jacobian[np.tril_indices(5)] > 1e-4)


def test_queries_depend_on_later_queries_through_text():
    """As in the original (spec A.4, second row), although its queries are called causal."""
    assert np.all(query_jacobian(text=TEXT, text_mask=TEXT_MASK) > 1e-5)


def test_text_alone_ignores_padding_and_memory():
    apply = jax.jit(lambda text: QFormer(SMALL).apply({"params": small_params()}, None, text, TEXT_MASK))
    out, changed = apply(TEXT), apply(TEXT.at[1, 2:].set(8))
    assert out.queries is None
    np.testing.assert_array_equal(out.text[1, :2], changed.text[1, :2])
    assert not np.allclose(out.text[1, 2:], changed.text[1, 2:])


def test_a_caption_sees_all_queries_and_does_not_change_them():
    apply = functools.partial(QFormer(SMALL).apply, {"params": small_params()}, MEMORY)
    alone = jax.jit(apply)()
    both = jax.jit(functools.partial(apply, autoregressive=True))(TEXT, TEXT_MASK)
    np.testing.assert_allclose(alone.queries, both.queries, atol=1e-5)  # other shapes, another order of summation
    changed = jax.jit(functools.partial(apply, autoregressive=True))(TEXT.at[0, 2].set(8), TEXT_MASK)
    np.testing.assert_array_equal(both.text[0, :2], changed.text[0, :2])
    assert np.all(np.abs(both.text[0, 2:] - changed.text[0, 2:]).max(-1) > 1e-4)


@pytest.mark.parametrize(("count", "causal"), [(32, True), (31, False), (8, False)])
def test_perturbation_matrix_equals_the_original(count, causal):
    """The original is causal with 32 queries and, silently, not with 31 or 8; here it is an option of the config."""
    recorded = golden.tensors("causality/causality.safetensors")
    tokenizer = imported("release")
    config = tokenizer.config.qformer.__class__(
        **{**vars(tokenizer.config.qformer), "num_queries": count, "causal": causal}
    )
    params = jax.tree.map(jnp.asarray, tokenizer.params["qformer"])
    tokens = params["query_tokens"][:count]
    memory = jnp.asarray(recorded["encoder_hidden_states"])

    @jax.jit
    def outputs(tokens, memory):
        return QFormer(config).apply({"params": {**params, "query_tokens": tokens}}, memory).queries[0]

    base, matrix = outputs(tokens, memory), recorded[f"change_matrix_{count}_queries"]
    for j in (j for j in (0, 7, 16, 31) if j < count):
        moved = outputs(tokens.at[j].add(recorded[f"delta_{j}"]), memory)
        # float32 on both sides; 1e-4 is ten times the original's own rounding error
        np.testing.assert_allclose(np.abs(moved - base).max(-1), matrix[j], atol=1e-4)
        if causal:
            np.testing.assert_allclose(moved, recorded[f"output_perturbed_{j}"], atol=1e-4)
            np.testing.assert_array_equal(moved[:j], base[:j])
    if causal:
        np.testing.assert_allclose(base, recorded["output_base"], atol=1e-4)
        last_token = np.abs(outputs(tokens, memory.at[0, -1].add(1.0)) - base).max(-1)
        np.testing.assert_allclose(last_token, recorded["change_from_last_image_token"], atol=1e-4)


def test_text_side_and_queries_equal_the_original_of_stage_one():
    folder = "tokenizer_train_tiny"
    config = QFormerConfig(width=48, depth=4, heads=4, mlp_width=192, memory_width=64, vocab_size=106, max_positions=64)
    table = [Entry("query_tokens", "query_tokens", Layout(lead=1)), *qformer_entries("", "Qformer.bert.", config)]
    table = [Entry(entry.path.lstrip("/"), entry.name, entry.layout, entry.layers) for entry in table]
    params = read(f"{folder}/stage1.weights.safetensors", table, shapes_of(config))
    inputs = golden.tensors(f"{folder}/stage1.inputs.safetensors")
    outputs = golden.tensors(f"{folder}/stage1.outputs.safetensors")
    apply = jax.jit(functools.partial(QFormer(config).apply, {"params": params}))
    text = apply(None, jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"]) > 0).text
    queries = apply(jnp.asarray(outputs["ln_vision"])).queries
    # atol 1e-4 as for tokenizer_tiny's Q-Former: ten times the original's own rounding error
    valid = inputs["attention_mask"] > 0
    np.testing.assert_allclose(text[valid], outputs["text_last_hidden_state"][valid], atol=1e-4)
    np.testing.assert_allclose(queries, outputs["query_last_hidden_state"], atol=1e-4)


def test_dropout_is_active_only_if_not_deterministic():
    @functools.partial(jax.jit, static_argnames="deterministic")
    def outputs(key, deterministic=True):
        rngs = {"dropout": jax.random.key(key)}
        return QFormer(SMALL).apply({"params": small_params()}, MEMORY, rngs=rngs, deterministic=deterministic).queries

    np.testing.assert_array_equal(outputs(0), outputs(1))
    np.testing.assert_array_equal(outputs(0, deterministic=False), outputs(0, deterministic=False))
    assert not np.allclose(outputs(0, deterministic=False), outputs(1, deterministic=False), atol=1e-2)


def test_attention_dropout_keeps_the_mean():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 3, 2, 4)) for i in range(3))
    mask = attention_mask(3, causal=True)
    draw = jax.jit(jax.vmap(lambda key: attend(q, k, v, mask=mask, dropout=0.25, dropout_rng=key)))
    dropped = draw(jax.random.split(jax.random.key(9), 4000))
    # The mean of 4000 samples is within 5 standard errors of its expectation.
    error = 5 * np.asarray(dropped).std(0) / 4000**0.5
    assert np.all(np.abs(dropped.mean(0) - attend(q, k, v, mask=mask)) <= error + 1e-6)
    first = np.asarray(dropped)[:, 0, 0, 0, 0]  # query 0 sees key 0 only: dropped, or scaled by 1 / 0.75
    np.testing.assert_allclose(np.unique(np.round(first / float(v[0, 0, 0, 0]), 3)), [0.0, 1.333])


@pytest.mark.slow
def test_remat_recomputes_with_the_same_gradients():
    def gradient(remat):
        model = QFormer(SMALL, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, MEMORY).queries).sum()))

    plain, recomputed = gradient(False)(small_params()), gradient(True)(small_params())
    assert "remat" in str(jax.make_jaxpr(gradient(True))(small_params()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), plain, recomputed)


def test_layer_groups():
    """Only the first layer of a group has cross-attention; other group sizes work; the depth must be a multiple."""
    layers = shapes_of(SMALL)["layers"]
    assert "cross_attention" in layers["layer_0"]
    assert "cross_attention" not in layers["layer_1"]
    every = shapes_of(QFormerConfig(width=16, depth=3, heads=2, mlp_width=24, memory_width=12, cross_attention_every=1))
    assert every["layers"].keys() == {"layer_0"}
    assert every["layers"]["layer_0"]["cross_attention"]["key"]["kernel"].shape == (3, 12, 16)
    assert "text_ffn" not in every["layers"]["layer_0"]
    with pytest.raises(UserError, match="found 3 and 2"):
        QFormerConfig(depth=3)
