"""What codes say about images: agreement of the codes of one symbol between studios, and a linear probe."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

_PENALTIES = (1.0, 10.0, 100.0)  # of the ridge regression; overlaps are counted in codes
_BLOCK = 256  # rows of overlaps in memory


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How much more alike the codes of one symbol are than those of different symbols.

    Attributes:
        same: mean fraction of the codes that agree between two studios' images of a symbol.
        different: the same for images of different symbols.
        auc: probability that two images of one symbol agree in more codes than two of different symbols, ties counted
            half.
    """

    same: float
    different: float
    auc: float


def agreement(codes: Int[np.ndarray, "N Q"], others: list[Int[np.ndarray, "N Q"]]) -> Agreement:
    """Compare a studio's codes with those of other studios.

    Args:
        codes: of one studio's images.
        others: of the same symbols in the same order, for each of the other studios.
    """
    count, num_codes = codes.shape
    # Histograms over the number of equal codes, from which all three figures follow exactly.
    same, different = np.zeros(num_codes + 1), np.zeros(num_codes + 1)
    for other in others:
        for start in range(0, count, _BLOCK):
            overlaps = overlap(codes[start : start + _BLOCK], other)
            own = overlaps[np.arange(len(overlaps)), start + np.arange(len(overlaps))]
            all_pairs = np.bincount(overlaps.reshape(-1), minlength=num_codes + 1)
            own_pairs = np.bincount(own, minlength=num_codes + 1)
            same += own_pairs
            different += all_pairs - own_pairs
    levels = np.arange(num_codes + 1) / num_codes
    below = np.cumsum(different) - different / 2
    return Agreement(
        same=float((same * levels).sum() / same.sum()),
        different=float((different * levels).sum() / different.sum()),
        auc=float((same * below).sum() / (same.sum() * different.sum())),
    )


def overlap(first: Int[np.ndarray, "N Q"], second: Int[np.ndarray, "M Q"]) -> Int[np.ndarray, "N M"]:
    """Count the positions at which the codes of each pair of images are equal."""
    counts = np.zeros((len(first), len(second)), np.int16)
    for position in range(first.shape[1]):
        counts += first[:, position, None] == second[None, :, position]
    return counts


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeData:
    """Codes of images with the class of each.

    Attributes:
        codes: of the images.
        labels: classes from 0.
    """

    codes: Int[np.ndarray, "N Q"]
    labels: Int[np.ndarray, " N"]


def probe_accuracy(train: ProbeData, validation: ProbeData, tests: list[ProbeData]) -> list[float]:
    """Train a linear classifier on codes and return its accuracy on each test set.

    Ridge regression of the classes on the one-hot codes of all positions, solved exactly in the dual: the kernel of two
    images is the number of codes in which they agree.

    Args:
        train: to train on.
        validation: to choose the penalty on; then trained on, too.
        tests: to measure.
    """
    num_classes = int(max(train.labels.max(), validation.labels.max())) + 1
    penalty = max(
        _PENALTIES, key=lambda penalty: _accuracies(train, [validation], num_classes, penalty)[0]
    )  # the first of equal ones
    joined = ProbeData(
        np.concatenate([train.codes, validation.codes]), np.concatenate([train.labels, validation.labels])
    )
    return _accuracies(joined, tests, num_classes, penalty)


def _accuracies(train: ProbeData, tests: list[ProbeData], num_classes: int, penalty: float) -> list[float]:
    targets: Float[np.ndarray, "N C"] = np.eye(num_classes, dtype=np.float32)[train.labels]
    mean = targets.mean(0)
    kernel = overlap(train.codes, train.codes).astype(np.float32)
    kernel[np.diag_indices(len(kernel))] += penalty
    weights = np.linalg.solve(kernel, targets - mean)
    accuracies = []
    for test in tests:
        scores = overlap(test.codes, train.codes).astype(np.float32) @ weights + mean
        accuracies.append(float((scores.argmax(1) == test.labels).mean()))
    return accuracies
