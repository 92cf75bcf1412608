"""The outcome of a study: which trial won, and whether its lead is more than noise, in words.

Everything here follows from rows of the trials table, of a running or an ended study.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from statistics import fmean
from typing import Any

from mnist_ray.search import statistics

Row = dict[str, Any]


class Phase(StrEnum):
    """The phases of a study, in order."""

    SCREEN = "screen"
    """Every configuration trains for one epoch, with a whole learning-rate schedule in it."""
    SEARCH = "search"
    """The configurations that compete train in full."""
    CONFIRM = "confirm"
    """The best configurations train again, with fresh seeds and the same held-out images."""
    FINAL = "final"
    """The winner trains with no image held out and is scored on the test set."""


class Status(StrEnum):
    """How a trial or a training run ended."""

    OK = "ok"
    """All its epochs are done."""
    STOPPED = "stopped"
    """The scheduler stopped it."""
    DIVERGED = "diverged"
    """Its loss became infinite or NaN."""
    FAILED = "failed"
    """It ended with an error or was interrupted."""
    RUNNING = "running"
    """It has not ended, or was killed."""


WITH_RESULT = (Status.OK, Status.STOPPED)
"""The statuses of trials whose accuracies count."""


def verdict(confirmed: Mapping[int, Sequence[float | None]]) -> str:
    """Describe the first two confirmed trials, and whether they differ by more than noise; empty
    where no trial was confirmed. `confirmed` is what the function of that name returns."""
    parts = [_described(number, accuracies) for number, accuracies in confirmed.items()][:2]
    if len(parts) == 2:
        parts.append(_compared(*list(confirmed.values())[:2]))
    return "; ".join(filter(None, parts))


def _compared(first: Sequence[float | None], second: Sequence[float | None]) -> str:
    """Say whether two samples of accuracies differ by more than noise, by Welch's t-test at 5 %;
    empty where a repetition has no result."""
    ours, theirs = _with_result(first), _with_result(second)
    if len(ours) < len(first) or len(theirs) < len(second):
        return ""
    n = f"n = {len(ours)}"
    p = statistics.welch(ours, theirs)
    if p is None:
        return f"{n} cannot tell the difference from noise"
    judged = "tells" if p < 0.05 else "cannot tell"
    return f"{n} {judged} the difference from noise (Welch's t-test, p = {p:.2g})"


def _with_result(accuracies: Sequence[float | None]) -> list[float]:
    return [accuracy for accuracy in accuracies if accuracy is not None]


def ranked(rows: Iterable[Row], phase: str) -> list[int]:
    """Return the numbers of the trials of `phase` that have a result, by falling best accuracy;
    among equals, the earlier trial comes first."""
    found = [row for row in rows if row["phase"] == phase and row["status"] in WITH_RESULT]
    found.sort(key=lambda row: (-row["best_accuracy"], row["trial"]))
    return [row["trial"] for row in found]


def confirmed(rows: Iterable[Row]) -> dict[int, list[float | None]]:
    """Return, for each trial that was confirmed, the final accuracies of its repetitions.

    A repetition without a result is None, and counts as 0 in the order: by falling mean accuracy.
    """
    found: dict[int, list[float | None]] = {}
    for row in sorted(rows, key=lambda row: row["trial"]):
        if row["phase"] == Phase.CONFIRM:
            accuracy = row["final_accuracy"] if row["status"] == Status.OK else None
            found.setdefault(row["repeats"], []).append(accuracy)
    return dict(sorted(found.items(), key=lambda pair: -fmean(x or 0.0 for x in pair[1])))


def winner(rows: Collection[Row]) -> int | None:
    """Return the number of the best trial: by the confirmation, or else by the search; None where
    no trial of either phase has ended with a result."""
    return next(iter([*confirmed(rows), *ranked(rows, Phase.SEARCH)]), None)


def against_base(rows: Collection[Row], best: int | None) -> str:
    """Say which place the base recipe took, and how it compares with the winner, the trial `best`.

    The parts are separated by semicolons. The text is empty where the study did not try the base
    recipe, or `best` is None.
    """
    by_number = {row["trial"]: row for row in rows}
    of_base = {row["phase"]: row["trial"] for row in rows if row["origin"] == "base"}
    phase = Phase.SEARCH if Phase.SEARCH in of_base else Phase.SCREEN
    if best is None or phase not in of_base:
        return ""
    number, ranking = of_base[phase], ranked(rows, phase)
    if number not in ranking:
        return f"trial {number} {by_number[number]['status']}, and so has no result"
    place = f"trial {number}, place {ranking.index(number) + 1} of {len(ranking)} in the"
    place += " search" if phase == Phase.SEARCH else " screening"
    if by_number[best]["origin"] == "base":
        return f"{place}; it is the winner: nothing that was tried beat it"
    repeated = confirmed(rows)
    if number in repeated:
        return f"{place}; {_versus(repeated[best], repeated[number])}"
    compared = best if phase == Phase.SEARCH else by_number[best]["repeats"]
    shown = [f"{by_number[each]['best_accuracy']:.2%}" for each in (number, compared)]
    return (
        f"{place}; one run each: {shown[0]}, and {shown[1]} for the winner's configuration;"
        " --confirm-base compares them over fresh seeds"
    )


def _versus(winners: Sequence[float | None], bases: Sequence[float | None]) -> str:
    """Say how the winner's repetitions compare with the base recipe's."""
    first, second = _with_result(winners), _with_result(bases)
    if not first or not second:
        return "confirmed without a result"
    points = 100 * (fmean(first) - fmean(second))
    parts = f"confirmed {statistics.in_percent(second)}, the winner {points:+.2f} points"
    return "; ".join(filter(None, (parts, _compared(winners, bases))))


def _described(number: int, accuracies: Sequence[float | None]) -> str:
    known = _with_result(accuracies)
    failed = len(accuracies) - len(known)
    words = [statistics.in_percent(known)] if known else []
    words += [f"{failed} of {len(accuracies)} without a result"] if failed else []
    return f"trial {number} {', '.join(words)}"
