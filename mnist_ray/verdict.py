"""What a few runs with different seeds say, in words."""

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev


def mean_and_deviation(shares: Sequence[float]) -> str:
    """In percent, with the standard deviation of the sample where there are two or more."""
    if len(shares) == 1:
        return f"{shares[0]:.2%}"
    return f"{100 * fmean(shares):.2f} ± {100 * stdev(shares):.2f} %"


def verdict(confirmed: Mapping[int, Sequence[float | None]]) -> str:
    """The first of the confirmed trials and the second, and whether their difference is more than
    noise; empty without any. An accuracy of None is a repetition without a result."""
    described = [_described(number, runs) for number, runs in confirmed.items()]
    if len(described) < 2:
        return "".join(described)
    text = "; ".join(described[:2])
    first, second = list(confirmed.values())[:2]
    return "; ".join(filter(None, (text, compared(first, second))))


def compared(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    """Say whether two samples of accuracies differ by more than noise, by Welch's t-test at 5 %
    (Biometrika 34, 1947, p. 28); empty where a run of either is without a result."""
    first = [accuracy for accuracy in ours if accuracy is not None]
    second = [accuracy for accuracy in theirs if accuracy is not None]
    if len(first) < len(ours) or len(second) < len(theirs):
        return ""
    n = f"n = {len(first)}"
    if len(first) == 1 or len(set(first)) == len(set(second)) == 1:
        return f"{n} cannot tell the difference from noise"
    from scipy.stats import ttest_ind  # half a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one sample that is constant
        p = float(ttest_ind(first, second, equal_var=False).pvalue)
    judged = "tells" if p < 0.05 else "cannot tell"
    return f"{n} {judged} the difference from noise (Welch's t-test, p = {p:.2f})"


def versus(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    """Say how the winner's confirmation stands against that of the base recipe, in parts separated
    by semicolons."""
    first = [accuracy for accuracy in ours if accuracy is not None]
    second = [accuracy for accuracy in theirs if accuracy is not None]
    if not first or not second:
        return "confirmed without a result"
    points = 100 * (fmean(first) - fmean(second))
    parts = f"confirmed {mean_and_deviation(second)}, the winner {points:+.2f} points"
    return "; ".join(filter(None, (parts, compared(ours, theirs))))


def _described(number: int, runs: Sequence[float | None]) -> str:
    with_result = [accuracy for accuracy in runs if accuracy is not None]
    failed = len(runs) - len(with_result)
    words = [mean_and_deviation(with_result)] if with_result else []
    words += [f"{failed} of {len(runs)} without a result"] if failed else []
    return f"trial {number} {', '.join(words)}"
