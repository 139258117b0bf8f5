"""SEED-1's tokenizer against the recorded tensors of the original's branch v1; its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.models.tokenizer import vq
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, abstract_params
from tests.models.tokenizer.cases import imported_seed1, seed1_image
from tests.models.tokenizer.seed_tokenizer_test import layers_of
from tests.support import golden

TOLERANCES = {"prequant": 1e-4, "generation_embedding": 5e-5, "ln_vision": 1e-4, "margin": 1e-4}
LAYER_TOLERANCE = 5e-5  # the decoder's layers


def test_every_recorded_tensor_equals_the_original():
    expected, tokenizer = golden.tensors("seed1_tiny/outputs.safetensors"), imported_seed1()
    model = SeedTokenizer(tokenizer.config)

    @jax.jit
    def run(params, image, codes):
        variables = {"params": params}
        encoded = model.apply(variables, image, method="encode")
        features = model.apply(variables, image, method="features")
        up = model.apply(variables, codes, method="decode_codes")
        embedding, state = model.apply(variables, codes, method="embed_codes", mutable="intermediates")
        return encoded, features, up, embedding, state["intermediates"]["text_decoder"]

    encoded, features, up, embedding, decoder = run(tokenizer.params, seed1_image(), jnp.asarray(expected["indices"]))
    distances = np.sort(vq.squared_distances(encoded.prequant, tokenizer.params["codebook"]), -1)
    ours = {
        "ln_vision": features,
        "prequant": encoded.prequant,
        "margin": distances[..., 1] - distances[..., 0],
        "decode_task_layer": up,
        **{f"blocks_text_{i}": block for i, block in enumerate(decoder["blocks"]["layers"]["hidden"][0])},
        **layers_of(decoder["reverse_qformer"], "reverse_layer"),
        "generation_embedding": embedding,
    }
    np.testing.assert_array_equal(encoded.codes, expected.pop("indices"))
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        atol = TOLERANCES.get(name, LAYER_TOLERANCE)
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=atol, err_msg=name)


def test_full_size_predicts_77_states_of_width_768():
    config = SeedTokenizerConfig.seed1()
    params = abstract_params(config)
    assert "image_blocks" not in params
    assert "recon_blocks" not in params
    reverse = params["text_decoder"]["reverse_qformer"]
    assert reverse["query_tokens"].shape == (77, 768)
    assert reverse["layers"]["layer_0"]["cross_attention"]["key"]["kernel"].shape == (2, 768, 768)
    codes = jnp.zeros((2, 32), jnp.int32)
    model = SeedTokenizer(config)
    embedding = jax.eval_shape(lambda p: model.apply({"params": p}, codes, method="embed_codes"), params)
    assert embedding.shape[1:] == config.embedding_shape == (77, 768)
    assert SeedTokenizerConfig.from_dict(config.to_dict()) == config


def test_reconstruction_needs_its_weights():
    tokenizer = imported_seed1()
    codes = jnp.zeros((1, 32), jnp.int32)
    with pytest.raises(UserError, match="does not reconstruct"):
        SeedTokenizer(tokenizer.config).apply({"params": tokenizer.params}, codes, method="reconstruct_codes")


def test_sizes_written_before_seed1_existed_are_read():
    written = SeedTokenizerConfig.tiny().to_dict()
    del written["reconstruction"]
    assert SeedTokenizerConfig.from_dict(written) == SeedTokenizerConfig.tiny()
