"""Run a study: `python -m mnist_ray.tune`. Reads the flags and calls `cluster.run_study`."""

from collections.abc import Sequence

from mnist_ray import errors, terminal
from mnist_ray.config import STUDY_RECIPE, PerWorker, Recipe, RunConfig, TuneConfig


def main(argv: Sequence[str]) -> None:
    base, settings, per_worker, run = terminal.parse_flags(
        argv,
        "tune",
        Recipe,
        TuneConfig,
        PerWorker,
        RunConfig,
        description="Search hyperparameters. --space says what varies, and the recipe's flags set"
        " the rest. Without flags, dropout, lr and momentum vary.",
        defaults=STUDY_RECIPE,
    )
    from mnist_ray import cluster  # after the flags: torch and Ray take seconds to import

    cluster.run_study(base, settings, per_worker, run, terminal.StudyDisplay())


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
