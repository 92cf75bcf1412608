"""Write the tables of accuracies in README.md and docs/: `python experiments/table.py`.

A table lies between two marks. A test checks that it is up to date.
"""

import re
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from mnist_ray import search

HERE = Path(__file__).parent
MARKS = ("<!-- experiments/table.py -->\n", "<!-- end -->\n")
TEST_IMAGES = 10_000


class Record(NamedTuple):
    """A row of the table: a recipe and the runs that trained it.

    The runs are the rows of the files `tables` in experiments/ that have a test accuracy and whose
    convolutions trained in `arithmetic`, fp32 or bf16.
    """

    recipe: str
    epochs: int
    tables: tuple[str, ...]
    arithmetic: str = "fp32"

    def rows(self) -> pd.DataFrame:
        rows = pd.concat([pd.read_csv(HERE / table) for table in self.tables])
        # The first records have one column for what was asked and what was done.
        done = rows.get("arithmetic", rows["precision"]).fillna(rows["precision"])
        return rows[rows["test_accuracy"].notna() & (done == self.arithmetic)]

    def accuracies(self) -> list[float]:
        """Return the test accuracies after the last epoch, 0 to 1; of a study, the winner's."""
        rows = self.rows()
        assert set(rows["epochs"]) == {self.epochs}
        return rows["test_accuracy"].tolist()


PUBLISHED = "published reference: SGD, lr 0.01, momentum 0.9, batch 64, dropout 0.1"
SEED = Record(
    "reference: `mnist-ray train`",
    20,
    ("2026-11-23_reference/trials.csv", "2026-11-23_precision/trials.csv"),
)
SEED_BF16 = Record(
    "the same, in bfloat16",
    20,
    ("2026-11-23_precision/trials.csv", "2026-11-26_three-fields/reference.csv"),
    "bf16",
)
FAST = Record(
    "fast: `mnist-ray train --config fast`",
    3,
    ("2026-11-23_fast/trials.csv",),
)
THREE_FIELDS = Record(
    "the reference with dropout, lr and momentum from a study of `mnist-ray tune`",
    20,
    ("2026-11-26_three-fields/seeds.csv",),
    "bf16",
)
FIRST_BEST = Record("the winner of a first search", 20, ("2026-11-26_best/seeds.csv",))
BEST = Record(
    "best: `mnist-ray train --config best`",
    20,
    ("2026-11-26_second-search/seeds.csv",),
    "bf16",
)
TAUGHT = Record(
    "best, taught by two networks 16 times as large", 20, ("2026-11-26_taught/seeds.csv",), "bf16"
)
FIRST_STUDY = Record(
    "best of 16 trials, on 50,000 images:"
    " `mnist-ray tune --num-trials 16 --epochs 8 --scheduler asha`",
    8,
    ("2026-11-23_first-study/trials.csv",),
)
RECORDS = [SEED, SEED_BF16, FAST, THREE_FIELDS, BEST, FIRST_STUDY]
REFERENCES = {each.arithmetic: each for each in (SEED, SEED_BF16)}
RECIPES = {"seed.yaml": SEED, "fast.yaml": FAST, "best.yaml": BEST}


PAGES = {"README.md": [SEED, FAST, BEST], "docs/results.md": RECORDS}
"""The records in the table of each page."""


def table(page: str) -> str:
    """Return the table of a page, whose links lead from the page's folder."""
    up = "../" * page.count("/")
    lines = [
        "| recipe | epochs | arithmetic | test accuracy after the last epoch | n"
        " | against the reference | record |",
        "| --- | ---: | --- | --- | ---: | --- | --- |",
    ]
    if page != "README.md":
        lines.append(f"| {PUBLISHED} | 20 | fp32 | {described([0.9941])} | 1 | | |")
    for record in PAGES[page]:
        ours = record.accuracies()
        reference = REFERENCES[record.arithmetic]
        folders = dict.fromkeys(name.partition("/")[0] for name in record.tables)
        links = ", ".join(f"[{each}]({up}experiments/{each}/README.md)" for each in folders)
        against = compared(ours, reference.accuracies()) if record is not reference else ""
        lines.append(
            f"| {record.recipe} | {record.epochs} | {record.arithmetic} | {described(ours)}"
            f" | {len(ours)} | {against} | {links} |"
        )
    return "\n".join(lines) + "\n"


def described(accuracies: list[float]) -> str:
    """Return the mean and standard deviation in words, or one accuracy with its 95 % interval
    (Wilson)."""
    if len(accuracies) > 1:
        return search.in_percent(accuracies)
    low, high = search.wilson(round(accuracies[0] * TEST_IMAGES), TEST_IMAGES)
    return f"{100 * accuracies[0]:.2f} % ({100 * low:.2f} to {100 * high:.2f})"


def compared(ours: list[float], reference: list[float]) -> str:
    """Return in words the difference of the means in points and the p of Welch's t-test; empty
    where the runs say nothing about the noise."""
    p = search.welch(ours, reference)
    if p is None:
        return ""
    points = 100 * (fmean(ours) - fmean(reference))
    return f"{points:+.2f} points, p {f'= {p:.2f}' if p >= 0.01 else '< 0.01'}"


def between_marks(text: str) -> re.Match[str]:
    begin, end = MARKS
    match = re.search(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", text, re.DOTALL)
    assert match, f"the page lacks the marks {MARKS}"
    return match


if __name__ == "__main__":
    for page in PAGES:
        file = HERE.parent / page
        text = file.read_text()
        start, end = between_marks(text).span()
        file.write_text(text[:start] + table(page) + text[end:])
