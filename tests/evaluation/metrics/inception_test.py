"""Inception features equal to pytorch-fid's, and files of other networks refused."""

import zlib

import jax
import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics import inception
from tests.support import golden


def weights(key, shape):
    """Return weights that depend on the tensor's name alone, as those of the recorded network."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    raw = np.random.Philox(key=zlib.crc32(key.encode())).random_raw(int(np.prod(shape)))
    values = (2.0 * ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53) - 1.0) * np.sqrt(3.0)
    if key.startswith("fc."):
        values = 0.02 * values
    elif key.endswith("running_var"):
        values = 1.0 + 0.2 * values
    elif key.endswith("bn.weight"):
        values = 1.0 + 0.1 * values
    elif key.endswith(("bn.bias", "running_mean")):
        values = 0.1 * values
    else:
        values = values * np.sqrt(2.0 / np.prod(shape[1:]))
    return values.astype(np.float32).reshape(shape)


@pytest.fixture(scope="module")
def tensors():
    keys = golden.load_json("evaluation/inception/keys.json")
    return {key: weights(key, tuple(shape)) for key, shape in keys.items()}


@pytest.fixture(scope="module")
def params(tensors):
    return inception.import_inception(tensors, "the golden file")


@pytest.fixture(scope="module")
def recorded():
    return golden.tensors("evaluation/inception/outputs.safetensors")


def test_names_and_shapes_of_the_file():
    keys = golden.load_json("evaluation/inception/keys.json")
    assert inception.expected_shapes() == {key: tuple(shape) for key, shape in keys.items()}


def test_features_and_blocks_as_pytorch_fid(params, recorded):
    batch = np.stack([inception.resize_bilinear(image) for image in recorded["image_uint8"]])
    features, blocks = jax.jit(inception.Inception().apply)({"params": params}, batch)
    np.testing.assert_allclose(features, recorded["features_2048"], rtol=0, atol=5e-5)
    for index, block in enumerate(blocks):
        np.testing.assert_allclose(block, recorded[f"block{index}_mean"], rtol=0, atol=5e-5)


def test_a_smaller_last_batch_has_the_same_features(params, recorded):
    features = inception.inception_features(params, list(recorded["image_uint8"][:1]), batch_size=2)
    assert features.shape == (1, 2048)
    np.testing.assert_allclose(features, recorded["features_2048"][:1], rtol=0, atol=5e-5)


def test_resizing_by_hand():
    image = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    # Centres of 4 pixels in 2: before the first, 1/4, 3/4, behind the last.
    np.testing.assert_allclose(inception.resize_bilinear(image, 4)[0, :, 0], [-1, -0.5, 0.5, 1])
    # Two pixels in four, without antialiasing: means of neighbours only.
    image = np.array([[[0] * 3, [51] * 3, [102] * 3, [204] * 3]], np.uint8)
    np.testing.assert_allclose(inception.resize_bilinear(image, 2)[0, :, 0], [-0.8, 0.2], atol=1e-6)


def test_batch_counts_may_be_missing(tensors):
    inception.import_inception({k: v for k, v in tensors.items() if "num_batches" not in k}, "a safetensors file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": np.zeros((1000, 2048), np.float32), "fc.bias": np.zeros(1000, np.float32)}, "misshapen"),
        ({"AuxLogits.fc.weight": np.zeros((1000, 768), np.float32)}, "unexpected.*AuxLogits"),
        ({"Mixed_5b.branch1x1.conv.weight": None}, "missing.*Mixed_5b.branch1x1.conv.weight"),
        ({"Mixed_5b.branch1x1.bn.bias": np.full(64, np.nan, np.float32)}, "Mixed_5b.branch1x1.*finite"),
    ],
)
def test_files_of_another_network_are_refused(tensors, change, message):
    changed = {key: value for key, value in (tensors | change).items() if value is not None}
    with pytest.raises(UserError, match=message) as raised:
        inception.import_inception(changed, "other.pth")
    assert "other.pth" in str(raised.value)
