import dataclasses

import numpy as np
import pytest

from seed_jax.convert.tensors import Tensors, open_tensors
from seed_jax.convert.tokenizer.parity import forward_checks
from tests.models.tokenizer.cases import imported
from tests.support import golden

pytest.importorskip("torch")

SPOILED = {
    # What goes wrong in the file, and the checks that see it.
    "visual_encoder.blocks.1.attn.q_bias": {"causal embeddings", "codes"},
    "Qformer.bert.encoder.layer.3.output_query.LayerNorm.bias": {"causal embeddings", "codes"},
    "quantize.embedding.weight": {"codes", "generation embedding"},
    "pos_embed_image": {"generation embedding"},
}


@pytest.mark.parametrize("variant", ["release", "qformer_image"])
def test_both_sides_agree(variant):
    tokenizer = imported(variant)
    for check in forward_checks(tokenizer.config, tokenizer.params, tokenizer.tensors):
        assert check.passed, check
        # Float32 on both sides: a hundredth of the limit, which has room for 39 blocks.
        assert check.value <= 0.01 * check.limit, check


@pytest.mark.parametrize("name", SPOILED)
def test_a_different_tensor_is_seen(name):
    tokenizer = imported("release")
    files = dict(open_tensors(golden.path("tokenizer_tiny/release.weights.safetensors")))
    changed = np.roll(files[name].read(), 1)
    files[name] = dataclasses.replace(files[name], read=lambda: changed)
    checks = forward_checks(tokenizer.config, tokenizer.params, Tensors(files, "spoiled"))
    assert {check.name for check in checks if not check.passed} == SPOILED[name]
