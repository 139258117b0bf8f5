"""The PyTorch side of parity reports is itself held against the original's recorded numbers."""

import numpy as np
import pytest

from seed_jax.convert.tensors import open_tensors
from seed_jax.convert.tokenizer.torch_reference import TorchTokenizer
from tests.models.tokenizer.cases import image, imported, recorded
from tests.support import golden

pytest.importorskip("torch")


@pytest.mark.parametrize("variant", ["release", "qformer_image"])
def test_restatement_equals_the_original(variant):
    weights = open_tensors(golden.path(f"tokenizer_tiny/{variant}.weights.safetensors"))
    reference, expected = TorchTokenizer(imported(variant).config, weights), recorded(variant)
    found = reference.encode(np.asarray(image()))
    # Both are float32 PyTorch; operations are fused differently, which the recorded max |f32-f64| (4e-6) covers.
    np.testing.assert_allclose(found.features, expected["ln_vision"], atol=1e-5)
    np.testing.assert_allclose(found.embeddings, expected["qformer_last_hidden_state"], atol=1e-5)
    np.testing.assert_array_equal(found.codes, expected["indices"])
    np.testing.assert_allclose(found.distance, expected["best_sq_distance"], atol=1e-4)
    np.testing.assert_allclose(found.margin, expected["margin"], atol=1e-4)
    np.testing.assert_allclose(reference.embed_codes(found.codes), expected["generation_embedding"], atol=1e-5)
