"""Search spaces as people write them, and configurations out of them. Without Ray."""

import itertools
import logging
import math
import random
import re
import typing
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler, TPESampler

from mnist_ray import restored
from mnist_ray.config import TrainConfig, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import UNREADABLE, field_value, parse_yaml, shown

TPE_LAG = 4
"""Trials that tpe looks past, unless more are to run at a time."""

FIXED = ("holdout", "num_workers", "min_workers", "cpus_per_worker", "use_gpu")
"""Fields that no study can vary: trials are compared on the same held-out images, and their
resources are planned before the first one starts."""


class Dimension(NamedTuple):
    """`kind` is uniform, loguniform, randint (both ends included) or choice."""

    kind: str
    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """How many values it has; infinite for a range of real numbers."""
        if self.kind == "choice":
            return len(self.values)
        return self.values[1] - self.values[0] + 1 if self.kind == "randint" else math.inf

    def all(self) -> Sequence[Any]:
        """Every value of a dimension whose size is finite."""
        if self.kind == "choice":
            return self.values
        return range(self.values[0], self.values[1] + 1)


def parse(space: dict[str, str], base: TrainConfig) -> dict[str, Dimension]:
    """Read and check a search space: each value is one that its field can have, though perhaps not
    together with every value of the others.

    Raises UserError for an unknown field, a spec that is none, bounds outside the field's, a choice
    with equal values, and a space without any valid configuration.
    """
    dimensions = {}
    for name, text in space.items():
        if name not in TrainConfig.model_fields or name in FIXED:
            known = [field for field in TrainConfig.model_fields if field not in FIXED]
            raise UserError(f"space has {shown(name)}, but can only have {', '.join(known)}.")
        dimension = _parse_one(name, text)
        wrong = f"space has {shown(name)}={shown(text)}"
        annotation = TrainConfig.model_fields[name].annotation
        needed = {"uniform": float, "loguniform": float, "randint": int}.get(dimension.kind)
        types = typing.get_args(annotation) or (annotation,)
        if needed and needed not in types:
            kinds = "uniform, loguniform or choice" if float in types else "choice"
            kinds = "randint or choice" if int in types else kinds
            raise UserError(f"{wrong}, but {name} takes {kinds}.")
        try:
            checked = tuple(field_value(TrainConfig, name, each) for each in dimension.values)
            if len(space) == 1:  # with nothing else to vary, each must go with the base recipe
                for value in checked:
                    base.replace(**{name: value})
        except UserError as error:
            raise UserError(f"{wrong}: {error}") from None
        if dimension.kind == "choice":
            dimension = Dimension("choice", checked)  # in the field's own type
            if twice := [value for i, value in enumerate(checked) if value in checked[:i]]:
                raise UserError(f"{wrong}, but {shown(twice[0])} is there twice; leave one out.")
        dimensions[name] = dimension
    if "precision" in dimensions and "auto" in dimensions["precision"].values:
        raise UserError(
            "space has precision=auto, but auto is fp32 or bf16, whichever the machine is fast at;"
            " name these two."
        )
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


LISTED = 100_000
"""The most combinations of a finite space that are listed beforehand, and that a grid can have."""

ATTEMPTS = 10_000
"""How often a sampler may propose what is invalid or not new before it is given up."""


def identity(config: TrainConfig) -> Hashable:
    """A value that is equal for two configurations that would train to the same weights."""
    values = config.model_dump()
    values["train_size"] = config.images
    if not (config.rotation or config.shift or config.scale):
        values["augment_until"] = 1.0  # there is nothing to end
    return tuple(values.items())


def read_try(text: str, base: TrainConfig) -> dict[str, Any]:
    """Read a configuration to try, like `lr=0.1 momentum=0.9`; what it does not name stays as in
    `base`. Raises UserError where it is none or not valid."""
    values: dict[str, Any] = {}
    for word in text.replace(",", " ").split():
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not value:
            raise UserError(f"try has {shown(word)}, but must be like 'lr=0.1 momentum=0.9'.")
        if name not in TrainConfig.model_fields or name in FIXED:
            known = [field for field in TrainConfig.model_fields if field not in FIXED]
            raise UserError(f"try has {shown(name)}, but can only have {', '.join(known)}.")
        if name in values:
            raise UserError(f"try has {name} twice: {shown(text)}; leave one out.")
        try:
            values[name] = field_value(TrainConfig, name, parse_yaml(value))
        except UNREADABLE:
            raise UserError(f"try has {shown(word)}, whose value cannot be read.") from None
        except UserError as error:
            raise UserError(f"try has {shown(word)}: {error}") from None
    if not values:
        raise UserError("try is empty, but must be like 'lr=0.1 momentum=0.9'.")
    try:
        base.replace(**values)
    except UserError as error:
        raise UserError(f"try has {shown(text)}: {error}") from None
    return values


EVOLVING = (
    *("lr", "momentum", "weight_decay", "label_smoothing"),
    *("dropout", "rotation", "shift", "scale"),
)
"""Fields that may change while a trial trains, as pbt changes them."""


def check(study: TuneConfig, dimensions: dict[str, Dimension], base: TrainConfig) -> None:
    """Raises UserError where the settings of a study contradict each other or its space."""

    def refuse(name: str, why: str) -> None:
        value = getattr(study, name, None)
        where = "space" if name in dimensions else "try"
        given = f"{name} is {value}" if name in TuneConfig.model_fields else f"{where} has {name}"
        raise UserError(f"{given}, but {why}.")

    for name, dimension in dimensions.items() if study.search == "grid" else ():
        if dimension.kind != "choice":
            raise UserError(
                f"search is grid, but {name} is {dimension.kind}; write {name}=choice(a, b, …)."
            )
    if study.keep and study.scheduler != "one-rung":
        refuse("keep", f"it is for the scheduler one-rung, not {study.scheduler}; leave it out")
    if study.keep and study.keep < (study.confirm or 0):
        refuse("confirm", f"keep is {study.keep}; raise keep, or confirm fewer")
    varied = {*dimensions}.union(*(read_try(text, base) for text in study.tries))
    if "seed" in varied and study.confirm != 0:
        refuse("seed", "a confirmation has seeds of its own; use --confirm 0")
    if "epochs" in varied and study.scheduler == "one-rung":
        refuse("epochs", "the scheduler one-rung compares all after 1 epoch; use asha or fifo")
    if "precision" in varied and study.base and base.precision == "auto":
        refuse(
            "precision",
            "the base recipe's is auto, which is one of them; add --precision fp32, or --no-base",
        )
    if study.confirm_base and not study.base:
        refuse("confirm_base", "the base recipe is left out; take back one of the two")
    if study.confirm_base and study.confirm == 0:
        refuse("confirm_base", "confirm is 0; raise it")
    if study.scheduler != "pbt":
        return
    if study.tries:
        refuse("tries", "the scheduler pbt varies a whole population; leave it out")
    if study.confirm_base:
        refuse("confirm_base", "what wins under the scheduler pbt is a course of values")
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
    if study.num_trials == 1:
        raise UserError("num_trials is 1, but the scheduler pbt needs a population of 2 or more.")


def tpe_lag(study: TuneConfig) -> int:
    """Trials that tpe looks past, and so how many may run at a time: that many when asked."""
    return max(TPE_LAG, study.max_concurrent or 0)


class Sampler:
    """Gives one configuration after the other, and none twice; the same seed the same ones, however
    many trials run at a time. The base recipe comes first, then those that the user wants tried.

    A space with at most LISTED combinations is listed, so that it can be walked to its end. For tpe
    there is a rule: configuration i is chosen knowing the outcomes of all trials but the `lag`
    before it, also of those that happen to have ended already.

    Raises UserError where the space has no valid configuration, or too few or too many for what is
    asked.
    """

    def __init__(
        self, study: TuneConfig, dimensions: dict[str, Dimension], base: TrainConfig
    ) -> None:
        self.base, self.dimensions = base, dimensions
        self.distributions = {name: _distribution(dim) for name, dim in dimensions.items()}
        self.remarks: list[str] = []
        """What to say of the space before the study begins."""
        self.origins: list[str] = []
        self.known: set[Hashable] = set()
        self.first = self._first(study)
        self.rest = self._listed(grid=study.search == "grid")
        self.count = study.num_trials or 6
        if self.rest is not None:
            there = len(self.first) + len(self.rest)
            if study.search == "grid":
                if study.num_trials not in (None, self.combinations, there):
                    raise UserError(
                        f"num_trials is {study.num_trials}, but the grid has {self.combinations}"
                        " combinations; leave num_trials out, or change the space."
                    )
                self.count = there
            elif there < self.count:
                self.remarks.append(
                    f"there {'is' if there == 1 else 'are'} only {there}"
                    f" configuration{'s' * (there > 1)} to try"
                )
                self.count = there
            if study.search != "grid":
                random.Random(base.seed).shuffle(self.rest)
        if self.count < len(self.first):
            raise UserError(
                f"num_trials is {self.count}, but base and try name {len(self.first)} already;"
                " raise it, or leave the base recipe out with --no-base."
            )
        if self.count == 1 and self.origins == ["base"] and self.rest != []:
            raise UserError(
                "num_trials is 1, which the base recipe takes up; raise it, or leave the base"
                " recipe out with --no-base."
            )
        if study.scheduler == "pbt" and self.count < 2:
            raise UserError(
                "num_trials is 1, but the scheduler pbt needs a population of 2 or more."
            )
        self.learns = study.search == "tpe"
        self.lag = tpe_lag(study) if self.learns else self.count
        sampler: optuna.samplers.BaseSampler = RandomSampler(seed=base.seed)
        if self.learns:
            # Bergstra et al., NeurIPS 2011: model the better trials, once there are a few at random
            sampler = TPESampler(seed=base.seed, n_startup_trials=max(4, self.count // 4))
        with restored.log_level("optuna", logging.WARNING):  # it would name its own study
            self.optuna = optuna.create_study(direction="maximize", sampler=sampler)
        self.asked: list[int | None] = []
        """Optuna's number of each configuration that it proposed; None for the first ones."""
        self.told = 0

    def _first(self, study: TuneConfig) -> list[dict[str, Any]]:
        """The base recipe's values in the space, and those that the user wants tried."""
        first = []
        wanted = [("base", dict[str, Any]())] if study.base and study.scheduler != "pbt" else []
        wanted += [("try", read_try(text, self.base)) for text in study.tries]
        for origin, named in wanted:
            values = {name: getattr(self.base, name) for name in self.dimensions} | named
            if self._is_new(values):
                first.append(values)
                self.origins.append(origin)
        return first

    def _listed(self, grid: bool) -> list[dict[str, Any]] | None:
        """The valid combinations that are not among the first ones, each once; None where the space
        is not finite, or too large to be listed."""
        finite = {name: dim.all() for name, dim in self.dimensions.items() if dim.size < math.inf}
        self.combinations = math.prod(len(values) for values in finite.values())
        if self.combinations > LISTED:
            if grid:
                raise UserError(
                    f"space has {self.combinations} combinations, but a grid can have at most"
                    f" {LISTED}."
                )
            return None
        # Which values go together does not depend on where in its range a real number lies.
        others = {
            name: dim.values[1] for name, dim in self.dimensions.items() if name not in finite
        }
        new, seen, wrong = [], set(self.known), list[str]()
        for values in itertools.product(*finite.values()):
            named = dict(zip(finite, values, strict=True))
            try:
                same = self._identity({**others, **named})
            except UserError as error:
                wrong.append(str(error))
                continue
            if same not in seen:
                seen.add(same)
                new.append(named)
        valid = self.combinations - len(wrong)
        if valid < self.combinations / 100:
            raise UserError(
                f"space has {self.combinations} combinations, but only {valid} are valid:"
                f" {wrong[0]}"
            )
        if wrong:
            self.remarks.append(
                f"{len(wrong)} of {self.combinations} combinations are left out, as they are not"
                f" valid: {wrong[0]}"
            )
        self.combinations = valid
        return new if len(finite) == len(self.dimensions) else None

    def _identity(self, values: dict[str, Any]) -> Hashable:
        return identity(self.base.replace(**values))

    def _is_new(self, values: dict[str, Any]) -> bool:
        """Whether the values make a valid configuration that was not given yet; then it counts as
        given."""
        try:
            same = self._identity(values)
        except UserError:
            return False
        new = same not in self.known
        self.known.add(same)
        return new

    def origin(self, number: int) -> str:
        """Where configuration `number` comes from: base, try or sampled."""
        return self.origins[number] if number < len(self.origins) else "sampled"

    def sample(self, number: int, accuracies: Mapping[int, float | None]) -> dict[str, Any] | None:
        """Configuration `number`, which is one more than that of the last call, or None if it must
        wait for more `accuracies` of those before; an accuracy of None is a trial without a result.
        """
        if number < len(self.first):
            self.asked.append(None)
            return self.first[number]
        if self.rest is not None and not self.learns:
            return self.rest[number - len(self.first)]
        while self.told <= number - self.lag:
            if self.told not in accuracies:
                return None
            self._tell(self.told, accuracies[self.told])
            self.told += 1
        return self._propose()

    def _tell(self, number: int, accuracy: float | None) -> None:
        asked = self.asked[number]
        if asked is None:
            if accuracy is not None and self.first[number].keys() == self.dimensions.keys():
                self.optuna.add_trial(_as_seen(self.first[number], self.dimensions, accuracy))
        elif accuracy is None:
            self.optuna.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self.optuna.tell(asked, accuracy)

    def _propose(self) -> dict[str, Any]:
        """A configuration that is valid and new; raises UserError where none is found."""
        for attempt in range(ATTEMPTS):
            if self.rest and attempt == 20:  # the sampler insists on what it knows
                self.optuna.enqueue_trial(
                    next(each for each in self.rest if self._identity(each) not in self.known)
                )
            asked = self.optuna.ask(self.distributions)
            params: dict[str, Any] = asked.params
            if self._is_new(params):
                self.asked.append(asked.number)
                return params
            self.optuna.tell(asked, state=optuna.trial.TrialState.FAIL)
        raise UserError(f"space has no further configuration: {ATTEMPTS} proposals were none.")


def sampler(study: TuneConfig, base: TrainConfig) -> Sampler:
    """The sampler of a study around the recipe `base`; raises UserError where the study's settings
    contradict each other, its space or the recipe."""
    dimensions = parse(study.dimensions(), base)
    check(study, dimensions, base)
    return Sampler(study, dimensions, base)


def _as_seen(
    values: dict[str, Any], dimensions: dict[str, Dimension], accuracy: float
) -> optuna.trial.FrozenTrial:
    """A trial with `values` as Optuna would have recorded it. Values may lie outside a range, which
    Optuna can learn from; what no sample could be, such as another choice, is left out."""
    distributions = {}
    for name, dimension in dimensions.items():
        value = values[name]
        if dimension.kind == "choice":
            if value in dimension.values:
                distributions[name] = _distribution(dimension)
        elif _is_number(value) and (dimension.kind != "loguniform" or value > 0):
            low, high = dimension.values
            wide = Dimension(dimension.kind, (min(low, value), max(high, value)))
            distributions[name] = _distribution(wide)
    params = {name: values[name] for name in distributions}
    return optuna.trial.create_trial(params=params, distributions=distributions, value=accuracy)


def _distribution(dimension: Dimension) -> BaseDistribution:
    kind, values = dimension
    if kind == "choice":
        return CategoricalDistribution(values)
    if kind == "randint":
        return IntDistribution(*values)
    return FloatDistribution(*values, log=kind == "loguniform")
