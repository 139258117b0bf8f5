"""Frechet distance: parity with pytorch-fid, singular covariances, statistics in batches and in files."""

import numpy as np
import pytest

from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.frechet import (
    FeatureAccumulator,
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    load_statistics,
    save_statistics,
)
from tests.support import golden


def normal(key, *shape):
    return np.random.Generator(np.random.Philox(key)).standard_normal(shape)


@pytest.fixture(scope="module")
def features():
    recorded = golden.tensors("evaluation/inception/outputs.safetensors")
    return recorded["fid_a"], recorded["fid_b"]


def test_distance_as_pytorch_fid(features):
    expected = golden.load_json("evaluation/inception/fid.json")["frechet_distance"]
    assert frechet_distance(*map(feature_statistics, features)) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_as_pytorch_fid(features):
    expected = golden.load_json("evaluation/inception/fid.json")["frechet_distance_of_the_first_20_rows"]
    one, other = (feature_statistics(rows[:20]) for rows in features)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    # As from a file, where the features are not at hand.
    one, other = (FeatureStatistics(statistics.mean, statistics.covariance) for statistics in (one, other))
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_equal_statistics_have_no_distance_even_if_singular():
    statistics = feature_statistics(normal(1, 3, 16))
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-9)


def test_distance_of_diagonal_gaussians():
    one = FeatureStatistics(np.array([1.0, 2.0]), np.diag([4.0, 0.0]))
    other = FeatureStatistics(np.array([0.0, 0.0]), np.diag([1.0, 9.0]))
    # 1 + 4 from the means, (2 - 1)^2 + (0 - 3)^2 from the standard deviations.
    assert frechet_distance(one, other) == pytest.approx(15)


def test_batches_give_what_all_features_at_once_give():
    features = (normal(2, 500, 8) * 1e-3 + 1e4).astype(np.float64)
    accumulator = FeatureAccumulator()
    for start in range(0, 500, 37):
        accumulator.update(features[start : start + 37])
    statistics = accumulator.statistics()
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-13)


def test_fewer_than_two_features_are_an_error():
    with pytest.raises(UserError, match="at least two"):
        feature_statistics(normal(3, 1, 4))
    with pytest.raises(UserError, match="at least two"):
        FeatureAccumulator().statistics()


def test_features_that_are_not_finite_are_an_error():
    with pytest.raises(UserError, match="finite"):
        feature_statistics(np.array([[0.0, np.nan], [1.0, 1.0]]))


def test_statistics_of_another_width_are_an_error():
    with pytest.raises(UserError, match="4 and 5"):
        frechet_distance(feature_statistics(normal(4, 9, 4)), feature_statistics(normal(4, 9, 5)))


def test_statistics_through_a_file(tmp_path):
    statistics = feature_statistics(normal(5, 30, 6))
    save_statistics(tmp_path / "reference.npz", statistics)
    loaded = load_statistics(tmp_path / "reference.npz", width=6)
    np.testing.assert_array_equal(loaded.mean, statistics.mean)
    np.testing.assert_array_equal(loaded.covariance, statistics.covariance)
    assert set(np.load(tmp_path / "reference.npz").files) == {"mu", "sigma"}
    with pytest.raises(UserError, match=r"6 values, expected 2048"):
        load_statistics(tmp_path / "reference.npz", width=2048)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, "shape"),
        ({"mu": np.zeros((1, 3)), "sigma": np.zeros((3, 3))}, "shape"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "finite"),
        ({"mu": np.zeros(3, int), "sigma": np.zeros((3, 3))}, "floats"),
        ({"mu": np.array([object()], object), "sigma": np.zeros((1, 1))}, "not an .npz"),
    ],
)
def test_bad_files_of_statistics_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message) as raised:
        load_statistics(tmp_path / "bad.npz")
    assert "bad.npz" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x93NUMPY", b"text"])
def test_files_that_are_no_archives_are_named(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.npz"):
        load_statistics(tmp_path / "bad.npz")
    with pytest.raises(UserError, match="does not exist"):
        load_statistics(tmp_path / "missing.npz")
