"""Compares two arms: paired confidence interval and significance test over the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 9999
# Resamples in memory at a time: ten thousand prompts need 20 MB instead of 800.
BATCH = 256


@dataclass(frozen=True)
class Comparison:
    """Arm `b` against arm `a` in one metric, in that metric's unit.

    Args:
        delta: mean of b minus mean of a.
        ci95: 95% confidence interval of delta, or None for a single pair.
        p_value: two-sided, or None for a single pair.
    """

    metric: str
    a: str
    b: str
    delta: float
    ci95: tuple[float, float] | None
    p_value: float | None


def compare(metric: str, a: str, b: str, values_a: Sequence[float], values_b: Sequence[float], seed: int) -> Comparison:
    """Compare two arms by their values on the same prompts, in the same order.

    The interval is the percentile bootstrap of the mean paired difference (Efron and Tibshirani
    1993, ch. 13). BCa is not used: its correction is 0/0 if all differences are equal, and unstable
    if most are tied, as with exact match over a few prompts.
    The p-value is that of the paired sign-flip permutation test (Fisher 1935): how often the mean
    difference is at least as far from zero when each difference gets a random sign. It is exact
    for up to 13 prompts and sampled for more.

    Args:
        metric, a, b: names for the result.
        values_a, values_b: one value per prompt; at least one pair.
        seed: of the resampling.
    """
    import numpy
    from scipy import stats

    differences = numpy.subtract(values_b, values_a)
    delta = float(differences.mean())
    if len(differences) == 1:
        return Comparison(metric, a, b, delta, None, None)
    if not differences.any():
        return Comparison(metric, a, b, 0.0, (0.0, 0.0), 1.0)
    interval = stats.bootstrap(
        (differences,), numpy.mean, n_resamples=RESAMPLES, batch=BATCH, method="percentile", rng=numpy.random.default_rng(seed)
    ).confidence_interval
    test = stats.permutation_test(
        (differences,),
        numpy.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=BATCH,
        rng=numpy.random.default_rng(seed),
        vectorized=True,
    )
    return Comparison(metric, a, b, delta, (float(interval.low), float(interval.high)), float(test.pvalue))
