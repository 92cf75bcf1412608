"""The driver of a study: it runs the trials with Ray Tune, records them, and scores the winner.

`study.py` imports this after Ray has started, because PyTorch and Ray Tune take seconds to import.
`search.Plan` decides which trials come next, and `trial.py` holds what each of them does.
"""

from collections.abc import Callable, Container
from datetime import UTC, datetime
from typing import NamedTuple

import ray
import torch
import yaml
from ray import tune

from mnist_ray import errors, learn, search, storage, tables
from mnist_ray.cluster import connect, earlier, resources, resume, schedulers, tracking, trial
from mnist_ray.cluster.recorder import Recorder
from mnist_ray.cluster.show import StudyShow
from mnist_ray.config import Recipe, Resources, RunConfig, TuneConfig
from mnist_ray.errors import RunFailed, UserError
from mnist_ray.fields import counted
from mnist_ray.learn import Mnist
from mnist_ray.search import Plan, Sampler
from mnist_ray.storage import Place

CHANGED = set(search.CHANGEABLE)


class Settings(NamedTuple):
    """A study as it was asked for, and as it was begun.

    `settings` are those of this command, `recorded` those that the study began with; they are the
    same unless the study is resumed. The plan is made from `planned`, which is `tuning` with the
    recorded `max_concurrent`: the lag of a sampler that learns depends on it.
    """

    base: Recipe
    tuning: TuneConfig
    planned: TuneConfig
    needs: Resources
    run: RunConfig
    sampler: Sampler
    settings: tables.Row
    recorded: tables.Row
    started_from: search.Earlier | None = None


def drive(
    study: Settings, folder: Place, mnist: Mnist, pace: float | None, show: StudyShow
) -> tables.Row:
    """Run the study in `folder`, or the rest of a resumed one, on the connected Ray cluster. `pace`
    is how many seconds training takes per image, or None if unknown. Return the winner's row of the
    trials table."""
    base, run, sampler = study.base, study.run, study.sampler
    cores = study.needs.cpus_per_worker or 1
    nodes, per_gpu = resources.cluster_nodes(), study.tuning.trials_per_gpu
    if study.tuning.workers_per_trial > 1:
        per_gpu = 1
    per_gpu = per_gpu or resources.trials_per_gpu(cores, nodes)
    share = resources.share(study.needs.replace(cpus_per_worker=cores), nodes, per_gpu)
    unchanged = run.resume and study.tuning == study.planned
    concurrent = _concurrency(study.tuning, share, show.say if unchanged else None)
    resources.check_shared(folder.parent)
    with tables.locked(folder, "tune", study.settings, run.resume, not run.name) as folder:
        if study.started_from:
            earlier.write(folder, study.started_from)
        trackers = tracking.callbacks(study.tuning.track, folder.name)
        rows, epochs = resume.ended(folder)
        unfinished = resume.begun(folder, epochs)
        epochs |= {number: each.epochs for number, each in unfinished.items()}
        recipes = {number: each.recipe for number, each in unfinished.items()}
        (_, began), *changes = _settings_over_time(folder, study.planned)
        plan = Plan(began, base, sampler, concurrent, rows, recipes, changes=changes)
        plan.replay()
        if plan.tuning != study.planned:
            after = plan.change(study.planned)
            tables.record_change(folder, after, study.planned.model_dump(include=CHANGED))
            epochs = {number: each for number, each in epochs.items() if number < after}
        searcher = schedulers.Search(plan, folder, plan.begun())
        if pace:  # scoring an image takes a third as long as training on it
            plan.budget.guess(pace, plan.epochs * base.holdout * pace / 3)
        show.begin(plan, share)
        if epochs and len(rows) < sum(plan.outline().values()):
            before = [{"threads": study.recorded["cpus_per_worker"] or 1}, *rows]
            before += [row for number in sorted(epochs) for row in epochs[number]]
            if words := resume.other_bits(before, _computes_with(base, sampler.dimensions, share)):
                show.say(f"{words}\n")
        try:
            with errors.explain_storage_errors(folder):
                recorder = _search(searcher, study.needs, epochs, mnist, share, run, trackers, show)
                return _finish(recorder, mnist, show)
        except (RunFailed, KeyboardInterrupt):
            recorded = {**study.recorded, **study.planned.model_dump(include=CHANGED)}
            show.stopped(folder, tables.resume_flags(folder, run, study.settings, recorded))
            raise


def _search(
    searcher: schedulers.Search,
    needs: Resources,
    epochs: tables.Epochs,
    mnist: Mnist,
    share: resources.WorkerResources,
    run: RunConfig,
    trackers: list[tune.Callback],
    show: StudyShow,
) -> Recorder:
    """Run the trials that have not ended, beginning with those that an interruption cut off."""
    plan, folder = searcher.plan, searcher.folder
    workers = plan.tuning.workers_per_trial
    launches = workers > 1
    recorder = Recorder(
        folder,
        plan.base,
        lambda config: learn.split(mnist, config.holdout, config.train_size).hash,
        show,
        searcher,
        run.max_failures,
        epochs,
        lambda: resources.why_waiting(share, workers),
        lambda: resources.waiting_launches(workers),
        device=share.device,
        started=min((row["started"] for row in plan.rows.values()), default=_now()),
        **tables.provenance(),
        **needs.model_dump(),
    )
    shared = trial.Shared(
        plan.base,
        needs,
        ray.put(mnist),
        share,
        folder,
    )
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial.launching_trial if launches else trial.trial, shared=shared),
            {"CPU": trial.LAUNCHER_CPUS} if launches else {"CPU": share.cpus, "GPU": share.gpus},
        ),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # the plan says when it is done
            search_alg=searcher,
            scheduler=schedulers.scheduler(plan, epochs),
            # Not the method itself, because Tune would copy it, and the searcher with it.
            trial_dirname_creator=lambda trial: searcher.folder_name(trial),
            # Starting a process takes seconds, but one whose workers were stopped cannot be reused.
            reuse_actors=not (launches and search.policy(plan.tuning).stops),
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[recorder, *trackers],
            verbose=1 if run.verbose else 0,
            # It prints nothing, but Tune's own choice for a notebook would clear the cell's output.
            progress_reporter=None if run.verbose else tune.CLIReporter(),
            failure_config=tune.FailureConfig(max_failures=run.max_failures),
        ),
    )
    try:
        with show:
            tuner.fit()
    finally:
        recorder.write()  # also what an interrupted study found so far
        recorder.keep_journal(end=True)
    return recorder


def _finish(recorder: Recorder, mnist: Mnist, show: StudyShow) -> tables.Row:
    """Write down the winner's recipe and its predictions on the test set, and return its row. Score
    it on the test set, unless the final runs were scored already."""
    plan, folder = recorder.plan, recorder.folder
    winner = plan.winner()
    if winner is None:
        outcomes = {f"{row['status']}: {row['error'] or ''}" for row in plan.rows.values()}
        raise RunFailed(f"no trial has a result ({'; '.join(sorted(outcomes))}); see {folder}.")
    best = plan.rows[winner]
    finals = plan.finals()
    saved = learn.load_checkpoint(folder / plan.rows[[*finals, winner][0]]["checkpoint"])
    score, predictions = learn.predictions(learn.load_model(saved), learn.test_part(mnist))
    tables.write_predictions(folder, predictions)
    if not finals:
        best |= tables.scores("test", score._asdict())
        recorder.write()
    recipe = folder / tables.BEST_RECIPE
    storage.write(recipe, _recipe(plan, best).encode())
    show.end(folder, recipe)
    return best


def _settings_over_time(folder: Place, tuning: TuneConfig) -> list[tuple[int, TuneConfig]]:
    """Return the settings that the study began with, and those after each change, with how many
    trials came before."""
    return [
        (after, tuning.replace(**{name: settings[name] for name in CHANGED}))
        for after, settings in tables.settings_over_time(folder)
    ]


def _now() -> datetime:
    return datetime.now(UTC)


def _computes_with(
    base: Recipe, dimensions: Container[str], share: resources.WorkerResources
) -> tables.Row:
    """Return what is known, before the trials start, of what decides their bits besides their
    recipes."""
    known = {"threads": share.cpus, "device": share.device}
    if share.gpus or len(resources.cluster_nodes()) > 1 or "precision" in dimensions:
        return known
    return {**known, "arithmetic": learn.resolve_precision(base.precision, torch.device("cpu"))}


def _concurrency(
    tuning: TuneConfig,
    share: resources.WorkerResources,
    say_lower: Callable[[str], None] | None = None,
) -> int:
    """Return how many trials run at a time. If more are asked for than fit, tell `say_lower` how
    many run instead; raise UserError if there is no `say_lower`."""
    fits = resources.workers_that_fit(share, resources.cluster_nodes()) // tuning.workers_per_trial
    wanted = tuning.max_concurrent or fits
    if wanted > fits:
        fits = (
            connect.wait_for_nodes(share, wanted * tuning.workers_per_trial)
            // tuning.workers_per_trial
        )
    if wanted > fits and say_lower:
        say_lower(f"max_concurrent is {wanted}, but only {fits} fit: goes on with {fits} at a time")
        return fits
    if wanted > fits:
        unit = f"{counted(share.cpus, 'CPU')}{share.and_a_gpu}"
        raise UserError(
            f"max_concurrent is {wanted}, but at {counted(tuning.workers_per_trial, 'worker')} a"
            f" trial with {unit} each only {counted(fits, 'trial')} can run at a time; use at most"
            f" {fits}."
        )
    return wanted


def _recipe(plan: Plan, best: tables.Row) -> str:
    """Return the best trial's recipe as YAML, without the fields that belong to its study. A field
    that was sampled always belongs to the recipe, even the number of images or the seed."""
    sampled = plan.trials[best["trial"]].sampled
    values = {**plan.base.model_dump(), **sampled}
    of_study = {"holdout", "seed", "train_size"} - set(sampled)
    values = {name: value for name, value in values.items() if name not in of_study}
    found = (
        f"# Trial {best['trial']} of {best['run']}: {best['best_accuracy']:.2%} of the held-out"
        f" images, trained on {plan.images_of(best['trial']):,}.\n"
    )
    return found + yaml.safe_dump(values, sort_keys=False)
