"""A study up to its first trial: check its settings and start Ray before slow imports."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mnist_ray import restored, search, tables
from mnist_ray.cluster import connect, earlier, ray_private, tracking
from mnist_ray.cluster.show import StudyShow
from mnist_ray.config import PerWorker, Recipe, Resources, RunConfig, TuneConfig, check_batch
from mnist_ray.errors import UserError

if TYPE_CHECKING:
    from mnist_ray.learn import Mnist


def run_study(
    base: Recipe,
    tuning: TuneConfig,
    per_worker: PerWorker,
    run: RunConfig,
    show: StudyShow,
) -> tables.Row:
    """Run or resume a study around the recipe `base`, write its tables, and score its winner on the
    test set. Return the winner's row of the trials table.

    Raises UserError if the settings cannot be run, RunFailed if no trial has a result.
    """
    needs = Resources(num_workers=tuning.workers_per_trial, **per_worker.model_dump())
    check_batch(base, needs)
    tuning = tuning.replace(space=search.space_of(tuning))
    if not base.holdout:
        raise UserError(
            "holdout is 0, but a study chooses by held-out images and must not see the test set;"
            " use at least 1, such as 10000."
        )
    settings = {**base.model_dump(), **per_worker.model_dump(), **tuning.model_dump()}
    recorded = tables.recorded_settings(run, "tune") if run.resume else settings
    planned = tuning.replace(max_concurrent=recorded["max_concurrent"])
    started = None if tuning.start_from is None else earlier.read(tuning.start_from, run)
    sampler = search.sampler(planned, base, started)
    folder = tables.folder_of(run, "tune")
    tracking.check(tuning.track)
    quiet = {} if run.verbose else ray_private.QUIET_TUNE
    with (
        restored.environment(
            ray_private.ALWAYS_FOR_TUNE, unless_set={**ray_private.FOR_TUNE, **quiet}
        ),
        tracking.impatient(),
        ThreadPoolExecutor(1) as background,
    ):
        # In the background, while Ray starts.
        loading = background.submit(_load, base, run, per_worker, tuning.workers_per_trial)
        with connect.connected(
            dashboard=tuning.workers_per_trial > 1, verbose=run.verbose, show=show
        ):
            with show.waiting("loading PyTorch, Ray Tune and MNIST"):
                mnist, pace = loading.result()
                from mnist_ray.cluster import driver
            study = driver.Settings(
                base, tuning, planned, needs, run, sampler, settings, recorded, started
            )
            return driver.drive(study, folder, mnist, pace, show)


def _load(
    recipe: Recipe, run: RunConfig, per_worker: PerWorker, workers: int
) -> "tuple[Mnist, float | None]":
    """Return MNIST, and roughly how many seconds a trial trains per image. The latter is None for
    trials on a GPU or on several workers, because it cannot be measured here."""
    from mnist_ray import learn  # PyTorch takes a second to import

    mnist = learn.load_mnist(recipe, run.data_dir)
    if workers > 1 or (learn.has_gpu() and per_worker.use_gpu is not False):
        return mnist, None
    return mnist, learn.seconds_per_image(recipe, mnist, per_worker.cpus_per_worker or 1)
