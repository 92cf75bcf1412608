"""The words that compare the confirmed trials."""

import pytest

from mnist_ray.search.outcome import verdict


@pytest.mark.parametrize(
    ("confirmed", "says"),
    [
        ({}, ""),
        ({7: [0.99]}, "trial 7 99.00%"),
        ({7: [0.99], 3: [0.98]}, "n = 1 cannot tell the difference from noise"),
        ({7: [0.991, 0.993], 3: [0.9905, 0.9915]}, "n = 2 cannot tell the difference from noise"),
        (
            {7: [0.991, 0.993], 3: [0.9005, 0.9015]},
            "n = 2 tells the difference from noise (Welch's t-test, p = 0.0012)",
        ),
        ({7: [0.99, 0.99], 3: [0.98, 0.98]}, "n = 2 cannot tell the difference from noise"),
        ({7: [0.99, 0.99], 3: [0.98, 0.981]}, "the difference from noise"),
        ({7: [0.99, 0.99], 3: [0.98, None]}, "trial 3 98.00%, 1 of 2 without a result"),
        ({7: [None, None]}, "trial 7 2 of 2 without a result"),
    ],
)
def test_the_verdict_says_what_is_noise(
    confirmed: dict[int, list[float | None]], says: str
) -> None:
    assert says in verdict(confirmed)
    assert bool(verdict(confirmed)) == bool(confirmed)
