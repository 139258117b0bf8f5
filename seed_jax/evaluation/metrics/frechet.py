"""Frechet distance between the Gaussians of two sets of features (FID), and the statistics it is computed from."""

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np
import scipy.linalg
from jaxtyping import Float

from seed_jax.errors import UserError
from seed_jax.files import check_regular, write_bytes

_MAX_STATISTICS_BYTES = 512 * 2**20  # of 2048 values a feature: 33 MB


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of feature vectors, in float64.

    `factor` times its transpose is the covariance: where it is given, the covariance need not be decomposed.
    """

    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]
    factor: Float[np.ndarray, "D rank"] | None = None


class FeatureAccumulator:
    """Accumulate mean and covariance batch by batch: memory is one D x D matrix, however many features there are.

    Example:
        accumulator = FeatureAccumulator()
        for features in batches:  # [batch, D]
            accumulator.update(features)
        statistics = accumulator.statistics()
    """

    def __init__(self):
        self.count = 0
        self._shift: Float[np.ndarray, " D"] | None = None
        self._sum: Float[np.ndarray, " D"] | None = None
        self._products: Float[np.ndarray, "D D"] | None = None
        self._pending: list[Float[np.ndarray, "batch D"]] = []

    def update(self, features: Float[np.ndarray, "batch D"]) -> None:
        """Add a batch of features."""
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise UserError("The features hold values that are not finite: check the images and the network's weights.")
        if not len(features):
            return
        if self._shift is None:
            # Sums of squares around a point near the mean lose no digits to its size.
            self._shift = features.mean(0)
        self.count += len(features)
        self._pending.append(features - self._shift)
        # One large product instead of many small ones, which would each read and write the D x D matrix.
        if sum(map(len, self._pending)) >= features.shape[1]:
            self._add_pending()

    def _add_pending(self) -> None:
        centred = np.concatenate(self._pending)
        self._pending = []
        total, products = centred.sum(0), centred.T @ centred
        self._sum = total if self._sum is None else self._sum + total
        if self._products is None:
            self._products = products
        else:
            self._products += products

    def statistics(self) -> FeatureStatistics:
        """Return mean and unbiased covariance.

        Raises:
            UserError: there are fewer than two features.
        """
        if self.count < 2 or self._shift is None:
            raise UserError(
                f"A covariance needs at least two images, and there are {self.count}: give more images to compare."
            )
        # Fewer features than values are all still here, and are a factor of their singular covariance.
        few = self._products is None
        features = np.concatenate(self._pending) if few else None
        if self._pending:
            self._add_pending()
        assert self._sum is not None
        assert self._products is not None
        mean = self._sum / self.count
        covariance = (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)
        factor = None if features is None else (features - mean).T / np.sqrt(self.count - 1)
        return FeatureStatistics(self._shift + mean, covariance, factor)


def feature_statistics(features: Float[np.ndarray, "N D"]) -> FeatureStatistics:
    """Return mean and unbiased covariance of features that are in memory."""
    accumulator = FeatureAccumulator()
    accumulator.update(features)
    return accumulator.statistics()


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Return |mean difference|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2).

    With Ci = Li Li^T, the last trace is the nuclear norm of L1^T L2: singular covariances need no epsilon on the
    diagonal and give no complex numbers.
    """
    if one.mean.shape != other.mean.shape:
        raise UserError(
            f"The features to compare have {one.mean.size} and {other.mean.size} values: compute both statistics with"
            " the same network."
        )
    cross = np.linalg.svd(_factor(one).T @ _factor(other), compute_uv=False).sum()
    difference = one.mean - other.mean
    return float(difference @ difference + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross)


def _factor(statistics: FeatureStatistics) -> Float[np.ndarray, "D rank"]:
    """Return L with L L^T = covariance."""
    if statistics.factor is not None:
        return statistics.factor
    values, vectors = scipy.linalg.eigh(statistics.covariance, driver="evd")
    kept = values > 0
    return vectors[:, kept] * np.sqrt(values[kept])


def save_statistics(path: Path, statistics: FeatureStatistics) -> None:
    """Write statistics atomically as an .npz file with pytorch-fid's keys `mu` and `sigma`."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=statistics.mean, sigma=statistics.covariance)
    write_bytes(path, buffer.getvalue())


def load_statistics(path: Path, width: int | None = None) -> FeatureStatistics:
    """Read statistics from an .npz file with the keys `mu` and `sigma`.

    Args:
        path: the file, as `save_statistics` or pytorch-fid's `--save-stats` writes it.
        width: the number of values that a feature must have.

    Raises:
        UserError: the file is missing, broken, has other keys or shapes, or features of another width.
    """
    try:
        arrays = _read_arrays(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give an .npz file of reference statistics.") from None
    except UserError:
        raise
    except Exception as error:  # NumPy's reader raises errors of many types on malformed headers
        raise UserError(f"{path} is not an .npz file of statistics ({error}): compute it again.") from error
    missing = {"mu", "sigma"} - arrays.keys()
    if missing:
        raise UserError(
            f"{path} has no {' and no '.join(sorted(missing))}: expected `mu` and `sigma` as pytorch-fid writes them."
        )
    mean, covariance = arrays["mu"], arrays["sigma"]
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError(f"{path} holds `mu` and `sigma` of types {mean.dtype} and {covariance.dtype}: expected floats.")
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise UserError(
            f"{path} holds `mu` of shape {mean.shape} and `sigma` of shape {covariance.shape}: expected [D] and [D, D]."
        )
    if width is not None and mean.size != width:
        raise UserError(
            f"{path} holds statistics of features with {mean.size} values, expected {width}: compute them with the same"
            " network."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} holds values that are not finite: compute it again.")
    return FeatureStatistics(mean.astype(np.float64), covariance.astype(np.float64))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    check_regular(path)
    with zipfile.ZipFile(path) as archive:  # a small archive can hold terabytes of zeros
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_STATISTICS_BYTES:
            raise ValueError(f"it holds more than {_MAX_STATISTICS_BYTES:,} bytes")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("mu", "sigma") if name in file.files}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # NumPy returns bytes of other files
        raise ValueError("a member is not a NumPy array")
    return arrays
