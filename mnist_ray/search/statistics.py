"""Statistics of a few measurements: mean and deviation, Welch's test, Wilson's interval.

No other module has these formulas, so that a table, a verdict and a figure cannot disagree. SciPy
takes half a second to import, so the functions import it.
"""

import warnings
from collections.abc import Sequence
from statistics import fmean, stdev


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, which is None for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def in_percent(fractions: Sequence[float]) -> str:
    """Return the mean and deviation of fractions from 0 to 1, like "99.41 ± 0.05 %"; a single
    fraction is like "99.41%"."""
    mean, deviation = mean_and_deviation(fractions)
    return f"{mean:.2%}" if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f} %"


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the p-value of Welch's t-test (Biometrika 34, 1947, p. 28) for whether two means
    differ by more than noise.

    Returns None where the noise is unknown: a sample has a single value, or both are constant.
    """
    if min(len(first), len(second)) < 2 or len(set(first)) == len(set(second)) == 1:
        return None
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy warns when one sample is constant
        return float(ttest_ind(first, second, equal_var=False).pvalue)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval (JASA 22, 1927, p. 209) of the fraction `right` / `n`."""
    from scipy.stats import binomtest

    ends = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)
