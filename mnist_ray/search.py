"""Search spaces as people write them, and configurations out of them. Without Ray."""

import itertools
import math
import re
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler, TPESampler

from mnist_ray.config import TrainConfig, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import UNREADABLE, parse_yaml, shown

TPE_LAG = 4
"""Trials that tpe looks past, unless more are to run at a time."""

FIXED = ("holdout", "num_workers", "min_workers", "cpus_per_worker", "use_gpu")
"""Fields that no study can vary: trials are compared on the same held-out images, and their
resources are planned before the first one starts."""


class Dimension(NamedTuple):
    """`kind` is uniform, loguniform, randint (both ends included) or choice."""

    kind: str
    values: tuple[Any, ...]


def parse(space: dict[str, str], base: TrainConfig) -> dict[str, Dimension]:
    """Read and check a search space: `base` accepts whatever each dimension could give by itself.

    Raises UserError for an unknown field, a spec that is none, and bounds outside the field's.
    """
    dimensions = {}
    for name, text in space.items():
        if name not in TrainConfig.model_fields or name in FIXED:
            known = [field for field in TrainConfig.model_fields if field not in FIXED]
            raise UserError(f"space has {shown(name)}, but can only have {', '.join(known)}.")
        dimension = dimensions[name] = _parse_one(name, text)
        annotation = TrainConfig.model_fields[name].annotation
        needed = {"uniform": float, "loguniform": float, "randint": int}.get(dimension.kind)
        types = typing.get_args(annotation) or (annotation,)
        if needed and needed not in types:
            kinds = "uniform, loguniform or choice" if float in types else "choice"
            kinds = "randint or choice" if int in types else kinds
            raise UserError(f"space has {shown(name)}={shown(text)}, but {name} takes {kinds}.")
        try:
            checked = tuple(
                getattr(base.replace(**{name: value}), name) for value in dimension.values
            )
        except UserError as error:
            raise UserError(f"space has {shown(name)}={shown(text)}: {error}") from None
        if dimension.kind == "choice":
            dimensions[name] = Dimension("choice", checked)  # in the field's own type
    return dimensions


def _parse_one(name: str, text: str) -> Dimension:
    wrong = f"space has {shown(name)}={shown(text)}, but "
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
    if not match or match[1] not in ("uniform", "loguniform", "randint", "choice"):
        raise UserError(
            f"{wrong}must be uniform(a, b), loguniform(a, b), randint(a, b) or choice(a, …)."
        )
    kind = match[1]
    try:
        values = parse_yaml(f"[{match[2]}]")
    except UNREADABLE:
        values = []
    if not values or any(isinstance(value, (list, dict)) for value in values):
        raise UserError(f"{wrong}has no list of values in its brackets.")
    if kind == "choice":
        return Dimension(kind, tuple(values))
    if len(values) != 2 or not all(_is_number(value) for value in values):
        raise UserError(f"{wrong}{kind} takes two numbers.")
    low, high = values
    if low >= high:
        raise UserError(f"{wrong}its lower end {low} is not below its upper end {high}.")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{wrong}its lower end {low} must be above 0.")
    if kind == "randint" and not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"{wrong}randint takes two whole numbers.")
    return Dimension(kind, (low, high))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63


def trials(study: TuneConfig, dimensions: dict[str, Dimension]) -> int:
    """How many trials the study has; raises UserError where a grid cannot have that many."""
    if study.search != "grid":
        return study.num_trials or 6
    for name, dimension in dimensions.items():
        if dimension.kind != "choice":
            raise UserError(
                f"search is grid, but {name} is {dimension.kind}; write {name}=choice(a, b, …)."
            )
    size = math.prod(len(dimension.values) for dimension in dimensions.values())
    if size > 100_000:
        raise UserError(f"space has {size} combinations, but a grid can have at most 100000.")
    if study.num_trials not in (None, size):
        raise UserError(
            f"num_trials is {study.num_trials}, but the grid has {size} combinations; leave"
            " num_trials out, or change the space."
        )
    return size


EVOLVING = (
    *("lr", "momentum", "weight_decay", "label_smoothing"),
    *("dropout", "rotation", "shift", "scale"),
)
"""Fields that may change while a trial trains, as pbt changes them."""


def check(study: TuneConfig, dimensions: dict[str, Dimension]) -> None:
    """Raises UserError where the settings of a study contradict each other or its space."""

    def refuse(name: str, why: str) -> None:
        value = getattr(study, name, None)
        given = f"{name} is {value}" if name in TuneConfig.model_fields else f"space has {name}"
        raise UserError(f"{given}, but {why}.")

    count = trials(study, dimensions)
    if study.keep and study.scheduler != "one-rung":
        refuse("keep", f"it is for the scheduler one-rung, not {study.scheduler}; leave it out")
    if study.keep and study.keep < (study.confirm or 0):
        refuse("confirm", f"keep is {study.keep}; raise keep, or confirm fewer")
    if "seed" in dimensions and study.confirm != 0:
        refuse("seed", "a confirmation has seeds of its own; use --confirm 0")
    if "epochs" in dimensions and study.scheduler == "one-rung":
        refuse("epochs", "the scheduler one-rung compares all after 1 epoch; use asha or fifo")
    if study.scheduler != "pbt":
        return
    for name in dimensions:
        if name not in EVOLVING:
            refuse(name, f"the scheduler pbt can change only {', '.join(EVOLVING)} on the way")
    if study.search == "tpe":
        refuse("search", "the scheduler pbt changes a whole population at once; use random")
    if study.confirm:
        refuse("confirm", "what wins under the scheduler pbt is a course of values; leave it out")
    if study.workers_per_trial > 1:
        refuse("workers_per_trial", "the scheduler pbt is for trials with 1 worker; use asha")
    for name in ("time_budget", "max_concurrent"):
        if getattr(study, name):
            refuse(name, "the scheduler pbt keeps to none; leave it out")
    if count < 2:
        raise UserError("num_trials is 1, but a population of the scheduler pbt needs 2 or more.")


def tpe_lag(study: TuneConfig) -> int:
    """Trials that tpe looks past, and so how many may run at a time: that many when asked."""
    return max(TPE_LAG, study.max_concurrent or 0)


class Sampler:
    """Gives one configuration after the other; the same seed the same ones, however many trials run
    at a time.

    For tpe that takes a rule: configuration i is chosen knowing the outcomes of all trials but the
    `lag` before it, also of those that happen to have ended already.
    """

    def __init__(self, study: TuneConfig, dimensions: dict[str, Dimension], seed: int) -> None:
        self.count = trials(study, dimensions)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would name its own study
        self.distributions = {name: _distribution(dim) for name, dim in dimensions.items()}
        self.lag = self.count
        sampler: optuna.samplers.BaseSampler = RandomSampler(seed=seed)
        if study.search == "tpe":
            self.lag = tpe_lag(study)
            # Bergstra et al., NeurIPS 2011: model the better trials, once there are a few at random
            sampler = TPESampler(seed=seed, n_startup_trials=max(4, self.count // 4))
        self.grid: list[tuple[Any, ...]] = []
        if study.search == "grid":
            self.grid = list(itertools.product(*(dim.values for dim in dimensions.values())))
        self.optuna = optuna.create_study(direction="maximize", sampler=sampler)
        self.told = 0

    def sample(self, number: int, accuracies: Mapping[int, float | None]) -> dict[str, Any] | None:
        """Configuration `number`, or None if it must wait for more `accuracies` of those before; an
        accuracy of None is a trial without a result."""
        if self.grid:
            return dict(zip(self.distributions, self.grid[number], strict=True))
        while self.told <= number - self.lag:
            if self.told not in accuracies:
                return None
            accuracy = accuracies[self.told]
            if accuracy is None:
                self.optuna.tell(self.told, state=optuna.trial.TrialState.FAIL)
            else:
                self.optuna.tell(self.told, accuracy)
            self.told += 1
        params: dict[str, Any] = self.optuna.ask(self.distributions).params
        return params


def _distribution(dimension: Dimension) -> BaseDistribution:
    kind, values = dimension
    if kind == "choice":
        return CategoricalDistribution(values)
    if kind == "randint":
        return IntDistribution(*values)
    return FloatDistribution(*values, log=kind == "loguniform")
