"""The statistical formulas, and that no other module has one."""

import re
import warnings
from pathlib import Path

import pytest

from mnist_ray.search import statistics

REPOSITORY = Path(__file__).parent.parent.parent


def test_the_deviation_is_that_of_the_sample() -> None:
    assert statistics.mean_and_deviation([2, 4, 4, 6]) == (4, pytest.approx((8 / 3) ** 0.5))
    assert statistics.mean_and_deviation([0.99]) == (0.99, None)
    assert statistics.in_percent([0.99, 0.98]) == "98.50 ± 0.71 %"
    assert statistics.in_percent([0.99]) == "99.00%"


def test_welchs_test() -> None:
    # By hand: t² is 12, with 2 degrees of freedom, for which p is 1 - |t| / sqrt(2 + t²).
    # Student's test, which assumes equal variances, has 4 degrees of freedom.
    assert statistics.welch([0, 0, 0], [1, 2, 3]) == pytest.approx(1 - (12 / 14) ** 0.5)


@pytest.mark.parametrize(
    ("first", "second"),
    [([1.0], [2.0]), ([1.0, 2.0], [3.0]), ([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0])],
)
def test_of_some_samples_welchs_test_says_nothing(first: list[float], second: list[float]) -> None:
    assert statistics.welch(first, second) is None


def test_one_constant_sample_is_no_obstacle() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = statistics.welch([0.99, 0.99], [0.98, 0.981])
    assert p is not None
    assert 0 < p < 1


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), p. 861, table I: 81 of 263 and 15 of 148.
    assert statistics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert statistics.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_these_formulas_have_one_home() -> None:
    formula = re.compile(r"\b(stdev|std|stddev|pstdev|ddof|scipy\.stats|ttest_\w+|binomtest)\b")
    files = [*REPOSITORY.glob("mnist_ray/**/*.py"), *REPOSITORY.glob("experiments/**/*.py")]
    assert [path.name for path in files if formula.search(path.read_text())] == ["statistics.py"]
