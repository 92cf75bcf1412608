"""Run a study: `python -m mnist_ray.tune`. Reads the flags and calls `cluster.run_study`."""

from argparse import ArgumentParser
from collections.abc import Sequence

from mnist_ray import errors, terminal
from mnist_ray.config import STUDY_RECIPE, PerWorker, Recipe, RunConfig, TuneConfig

CLASSES = (TuneConfig, Recipe, PerWorker, RunConfig)
DESCRIPTION = (
    "Search hyperparameters. --space says what varies, and the recipe's flags set the rest."
    " Without flags, dropout, lr and momentum vary."
)


def parser() -> ArgumentParser:
    return terminal.flags_parser("tune", *CLASSES, description=DESCRIPTION, defaults=STUDY_RECIPE)


def main(argv: Sequence[str]) -> None:
    settings, base, per_worker, run = terminal.parse_flags(
        argv, "tune", *CLASSES, description=DESCRIPTION, defaults=STUDY_RECIPE
    )
    show = terminal.StudyDisplay()
    with show.waiting("loading Ray"):  # after the flags, because it takes a while to import
        from mnist_ray.cluster import run_study
    run_study(base, settings, per_worker, run, show)


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
