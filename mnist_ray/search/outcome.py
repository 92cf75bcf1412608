"""What came out of a study: which trial won, and what a few runs with different seeds say of it, in
words. It reads rows of the trials table, those of a study that runs or of one that ended."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from statistics import fmean
from typing import Any

from mnist_ray.search import statistics

Row = dict[str, Any]


class Phase(StrEnum):
    """A phase of a study, in the order in which they come."""

    SCREEN = "screen"
    """Every configuration for one epoch, a whole schedule of its own."""
    SEARCH = "search"
    """The configurations that compete, in full."""
    CONFIRM = "confirm"
    """The best of them again, with fresh seeds and the same held-out images."""
    FINAL = "final"
    """The winner with no image held out, scored on the test set."""


class Status(StrEnum):
    """How a trial, or a training run, ended."""

    OK = "ok"
    """It trained all its epochs."""
    STOPPED = "stopped"
    """The scheduler stopped it."""
    DIVERGED = "diverged"
    """Its loss was no longer finite."""
    FAILED = "failed"
    """It ended with an error, or was interrupted."""
    RUNNING = "running"
    """It has not ended, or was killed."""


WITH_RESULT = (Status.OK, Status.STOPPED)
"""The statuses of trials whose accuracies count."""


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
    """Say whether two samples of accuracies differ by more than noise, by Welch's t-test at 5 %;
    empty where a run of either is without a result."""
    first = [accuracy for accuracy in ours if accuracy is not None]
    second = [accuracy for accuracy in theirs if accuracy is not None]
    if len(first) < len(ours) or len(second) < len(theirs):
        return ""
    n = f"n = {len(first)}"
    p = statistics.welch(first, second)
    if p is None:
        return f"{n} cannot tell the difference from noise"
    judged = "tells" if p < 0.05 else "cannot tell"
    return f"{n} {judged} the difference from noise (Welch's t-test, p = {p:.2f})"


def ranked(rows: Iterable[Row], phase: str) -> list[int]:
    """Return the numbers of the trials of `phase` that have a result, the best first and of equal
    ones the earlier. `rows` are those of the trials table, here and below."""
    found = [row for row in rows if row["phase"] == phase and row["status"] in WITH_RESULT]
    found.sort(key=lambda row: (-row["best_accuracy"], row["trial"]))
    return [row["trial"] for row in found]


def confirmed(rows: Iterable[Row]) -> dict[int, list[float | None]]:
    """Return, of each confirmed trial of the search, the accuracies of its repetitions after their
    last epoch, None for one without a result; the best mean first, in which None counts as 0."""
    found: dict[int, list[float | None]] = {}
    for row in sorted(rows, key=lambda row: row["trial"]):
        if row["phase"] == Phase.CONFIRM:
            accuracy = row["final_accuracy"] if row["status"] == Status.OK else None
            found.setdefault(row["repeats"], []).append(accuracy)
    return dict(sorted(found.items(), key=lambda pair: -fmean(x or 0.0 for x in pair[1])))


def winner(rows: Collection[Row]) -> int | None:
    """Return the number of the best trial: by the confirmation, or else by the search; None where
    neither has a result."""
    return next(iter([*confirmed(rows), *ranked(rows, Phase.SEARCH)]), None)


def against_base(rows: Collection[Row], best: int | None) -> str:
    """Say where the base recipe came, and how the winner, the trial `best`, stands against it, in
    parts separated by semicolons; empty where the base recipe took no part, or nothing has won."""
    by_number = {row["trial"]: row for row in rows}
    of_base = [row for row in rows if row["origin"] == "base"]
    phase = Phase.SEARCH if any(row["phase"] == Phase.SEARCH for row in of_base) else Phase.SCREEN
    base = next((row for row in of_base if row["phase"] == phase), None)
    if best is None or base is None:
        return ""
    number, places = base["trial"], ranked(rows, phase)
    if number not in places:
        return f"trial {number} {base['status']}, and so has no result"
    place = f"trial {number}, place {places.index(number) + 1} of {len(places)} in the"
    place += " search" if phase == Phase.SEARCH else " screening"
    if by_number[best]["origin"] == "base":
        return f"{place}; it is the winner: nothing that was tried beat it"
    repeated = confirmed(rows)
    if number in repeated:
        return f"{place}; {_versus(repeated[best], repeated[number])}"
    same = best if phase == Phase.SEARCH else by_number[best]["repeats"]
    shown = [f"{by_number[each]['best_accuracy']:.2%}" for each in (number, same)]
    return (
        f"{place}; one run of each was compared: {shown[0]} there, {shown[1]} the winner's"
        " configuration; --confirm-base trains both with fresh seeds"
    )


def _versus(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    """Say how the winner's confirmation stands against that of the base recipe."""
    first = [accuracy for accuracy in ours if accuracy is not None]
    second = [accuracy for accuracy in theirs if accuracy is not None]
    if not first or not second:
        return "confirmed without a result"
    points = 100 * (fmean(first) - fmean(second))
    parts = f"confirmed {statistics.in_percent(second)}, the winner {points:+.2f} points"
    return "; ".join(filter(None, (parts, compared(ours, theirs))))


def _described(number: int, runs: Sequence[float | None]) -> str:
    with_result = [accuracy for accuracy in runs if accuracy is not None]
    failed = len(runs) - len(with_result)
    words = [statistics.in_percent(with_result)] if with_result else []
    words += [f"{failed} of {len(runs)} without a result"] if failed else []
    return f"trial {number} {', '.join(words)}"
