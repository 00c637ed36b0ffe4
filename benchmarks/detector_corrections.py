"""Other intervals of a rate seen through an imperfect detector, for ``benchmarks/true_asr.py``; of arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.metrics.intervals import quantile

Array = NDArray[np.float64]
Z = quantile(0.95)


class Random(NamedTuple):
    """Labels of a plain random sample, as these methods want them, for many replays; each (replays,)."""

    hits: Array  # labelled unsafe and flagged
    misses: Array
    alarms: Array  # labelled safe and flagged
    passes: Array

    @property
    def m(self) -> Array:
        return self.hits + self.misses + self.alarms + self.passes


def wilson(k: Array, n: Array | float) -> tuple[Array, Array]:
    """As ``harness.metrics.intervals.wilson``, of arrays."""
    middle, reach = k + Z**2 / 2, np.sqrt(Z**2 * (k * (n - k) / n + Z**2 / 4))
    low, high = (middle - reach) / (n + Z**2), (middle + reach) / (n + Z**2)
    return np.where(k == 0, 0.0, low), np.where(k == n, 1.0, high)


def rogan_gladen(flagged: Array, n: float, labels: Random) -> tuple[Array, Array]:
    """Rogan and Gladen 1978 with the interval of Lang and Reiczigel 2014 (Prev. Vet. Med. 113:13), cut to [0, 1].

    Where sensitivity and specificity as estimated sum to one or less, nothing is known: [0, 1].
    """
    unsafe, safe = labels.hits + labels.misses + 2, labels.alarms + labels.passes + 2
    sensitivity, specificity = (labels.hits + 1) / unsafe, (labels.passes + 1) / safe
    share, size = (flagged + Z**2 / 2) / (n + Z**2), n + Z**2
    youden = np.maximum(sensitivity + specificity - 1, 1e-6)
    rate = (share + specificity - 1) / youden
    noise_unsafe, noise_safe = sensitivity * (1 - sensitivity) / unsafe, specificity * (1 - specificity) / safe
    shift = 2 * Z**2 * (rate * noise_unsafe - (1 - rate) * noise_safe)
    variance = share * (1 - share) / size + noise_unsafe * rate**2 + noise_safe * (1 - rate) ** 2
    reach = Z * np.sqrt(variance) / youden
    low, high = np.clip(rate + shift - reach, 0, 1), np.clip(rate + shift + reach, 0, 1)
    unknown = sensitivity + specificity <= 1
    return np.where(unknown, 0.0, low), np.where(unknown, 1.0, high)


def ppi_plus_plus(flagged: Array, n: float, labels: Random) -> tuple[Array, Array]:
    """Prediction-powered inference, power-tuned (Angelopoulos, Duchi, Zrnic 2023), of a mean, cut to [0, 1]."""
    m = labels.m
    rest = n - m
    flagged_labelled = labels.hits + labels.alarms
    share, share_rest = flagged_labelled / m, (flagged - flagged_labelled) / rest
    mean = (labels.hits + labels.misses) / m
    covariance = labels.hits / m - mean * share
    variance = flagged / n * (1 - flagged / n)
    tuned = np.divide(covariance, (1 + m / rest) * variance, out=np.zeros_like(mean), where=variance > 0)
    tuned = np.clip(tuned, 0, 1)
    residual = mean * (1 - mean) + tuned**2 * share * (1 - share) - 2 * tuned * covariance
    error = np.sqrt(np.maximum(residual, 0) / (m - 1) + tuned**2 * variance / rest)
    rate = mean + tuned * (share_rest - share)
    return np.clip(rate - Z * error, 0, 1), np.clip(rate + Z * error, 0, 1)
