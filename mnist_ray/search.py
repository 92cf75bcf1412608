"""Search spaces as people write them, and configurations out of them. Without Ray."""

import itertools
import math
import random
import re
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mnist_ray.config import Recipe, Resources, TuneConfig, check_batch
from mnist_ray.errors import UserError
from mnist_ray.fields import UNREADABLE, field_value, parse_yaml, shown

if TYPE_CHECKING:  # Optuna takes a quarter of a second to import, and `--help` needs none of it
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

LAG = 4
"""Trials that a sampler that learns looks past, unless more are to run at a time."""

FIXED = ("holdout",)
"""Fields that no study can vary: trials are compared on the same held-out images."""


DEFAULT_SPACE = {
    "dropout": "uniform(0, 0.2)",
    "lr": "loguniform(0.02, 0.3)",
    "momentum": "uniform(0.8, 0.95)",
}
DEFAULT_GRID = {
    "dropout": "choice(0, 0.1)",
    "lr": "choice(0.05, 0.15)",
    "momentum": "choice(0.85, 0.92)",
}


class Dimension(NamedTuple):
    """A dimension of the search space. `kind` is uniform, loguniform, randint or choice; `values`
    are both ends, which are included, or the choices."""

    kind: str
    values: tuple[Any, ...]

    @property
    def log(self) -> bool:
        """Whether it is sampled, and drawn, on a logarithmic scale."""
        return self.kind == "loguniform"

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

    def distribution(self) -> "BaseDistribution":
        """The dimension as Optuna has it."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.values)
        if self.kind == "randint":
            return distributions.IntDistribution(*self.values)
        return distributions.FloatDistribution(*self.values, log=self.log)

    def reaching(self, value: Any) -> "Dimension | None":
        """The dimension made as wide as it takes to have `value`, such as the base recipe's; None
        where no range can have it, or it is another choice."""
        if self.kind == "choice":
            return self if value in self.values else None
        if not _is_number(value) or (self.log and value <= 0):
            return None
        low, high = self.values
        return Dimension(self.kind, (min(low, value), max(high, value)))


def parse(space: dict[str, str], base: Recipe, workers: int = 1) -> dict[str, Dimension]:
    """Read and check a search space for trials with that many workers: each value is one that its
    field can have, though perhaps not together with every value of the others.

    Raises UserError for an unknown field, a spec that is none, bounds outside the field's, a choice
    with equal values, and a space without any valid configuration.
    """
    dimensions = {}
    for name, text in space.items():
        if name not in Recipe.model_fields or name in FIXED:
            known = [field for field in Recipe.model_fields if field not in FIXED]
            raise UserError(f"space has {shown(name)}, but can only have {', '.join(known)}.")
        dimension = read_dimension(name, text)
        wrong = f"space has {shown(name)}={shown(text)}"
        annotation = Recipe.model_fields[name].annotation
        needed = {"uniform": float, "loguniform": float, "randint": int}.get(dimension.kind)
        types = typing.get_args(annotation) or (annotation,)
        if needed and needed not in types:
            kinds = "uniform, loguniform or choice" if float in types else "choice"
            kinds = "randint or choice" if int in types else kinds
            raise UserError(f"{wrong}, but {name} takes {kinds}.")
        try:
            checked = tuple(field_value(Recipe, name, each) for each in dimension.values)
            if len(space) == 1:  # with nothing else to vary, each must go with the base recipe
                for value in checked:
                    _valid(base, {name: value}, workers)
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


def read_dimension(name: str, text: str) -> Dimension:
    """Read a dimension of the field `name` as people write it; raises UserError where it is none.
    Whether the field can have its values is not checked."""
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


def identity(config: Recipe) -> Hashable:
    """A value that is equal for two configurations that would train to the same weights."""
    values = config.model_dump()
    values["train_size"] = config.images
    if not (config.rotation or config.shift or config.scale):
        values["augment_until"] = 1.0  # there is nothing to end
    return tuple(values.items())


def _valid(base: Recipe, values: Mapping[str, Any], workers: int) -> Recipe:
    """Return the recipe of a trial with `values`; raises UserError where these do not go together,
    or that many workers cannot train with them."""
    recipe = base.replace(**values)
    check_batch(recipe, Resources(num_workers=workers))
    return recipe


def read_try(text: str, base: Recipe, workers: int = 1) -> dict[str, Any]:
    """Read a configuration to try, like `lr=0.1 momentum=0.9`; what it does not name stays as in
    `base`. Raises UserError where it is none, or not valid for trials with that many workers."""
    values: dict[str, Any] = {}
    for word in text.replace(",", " ").split():
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not value:
            raise UserError(f"try has {shown(word)}, but must be like 'lr=0.1 momentum=0.9'.")
        if name not in Recipe.model_fields or name in FIXED:
            known = [field for field in Recipe.model_fields if field not in FIXED]
            raise UserError(f"try has {shown(name)}, but can only have {', '.join(known)}.")
        if name in values:
            raise UserError(f"try has {name} twice: {shown(text)}; leave one out.")
        try:
            values[name] = field_value(Recipe, name, parse_yaml(value))
        except UNREADABLE:
            raise UserError(f"try has {shown(word)}, whose value cannot be read.") from None
        except UserError as error:
            raise UserError(f"try has {shown(word)}: {error}") from None
    if not values:
        raise UserError("try is empty, but must be like 'lr=0.1 momentum=0.9'.")
    try:
        _valid(base, values, workers)
    except UserError as error:
        raise UserError(f"try has {shown(text)}: {error}") from None
    return values


class Method(NamedTuple):
    """What a sampler can do. To add one of Optuna's, add an entry to SAMPLERS."""

    says: str
    """How it chooses, for `--help`."""
    make: "Callable[[int, int], BaseSampler] | None" = None
    """Makes Optuna's sampler, from a seed and the number of configurations; None where all
    combinations are tried in their order."""
    learns: bool = False
    """Whether it goes by the accuracies of the trials before."""


def _random(seed: int, count: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _tpe(seed: int, count: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=max(4, count // 4))


SAMPLERS: dict[str, Method] = {
    "random": Method("draws at random", _random),
    "grid": Method("tries every combination of choices"),
    "tpe": Method("models the better trials (Bergstra et al., NeurIPS 2011)", _tpe, learns=True),
}


class Policy(NamedTuple):
    """What a scheduler does with the trials of a study. To add one, add an entry to SCHEDULERS, and
    the class that it names to `schedulers`."""

    says: str
    """What it does, for `--help`."""
    screens: bool = False
    """Whether every configuration trains for one epoch first, and only the best in full."""
    stops: str | None = None
    """The class of `schedulers` that stops trials on the way; None where all come to their end."""


E = TypeVar("E")

SCHEDULERS: dict[str, Policy] = {
    "one-rung": Policy("trains all for 1 epoch and the best in full", screens=True),
    "asha": Policy("compares trials after 1, 3, 9, … epochs and stops the weak", stops="Asha"),
    "median": Policy("stops a trial that is below the median of the others", stops="Median"),
    "fifo": Policy("lets all finish"),
}


def method(study: TuneConfig) -> Method:
    """The sampler of a study; raises UserError where there is none of that name."""
    return _entry("search", study.search, SAMPLERS)


def policy(study: TuneConfig) -> Policy:
    """The scheduler of a study; raises UserError where there is none of that name."""
    return _entry("scheduler", study.scheduler, SCHEDULERS)


def _entry(field: str, name: str, entries: Mapping[str, E]) -> E:
    if name not in entries:
        raise UserError(f"{field} is {shown(name)}, but must be one of {', '.join(entries)}.")
    return entries[name]


def check(study: TuneConfig, dimensions: dict[str, Dimension], base: Recipe) -> None:
    """Raises UserError where the settings of a study contradict each other or its space."""

    def refuse(name: str, why: str) -> None:
        value = getattr(study, name, None)
        where = "space" if name in dimensions else "try"
        given = f"{name} is {value}" if name in TuneConfig.model_fields else f"{where} has {name}"
        raise UserError(f"{given}, but {why}.")

    for name, dimension in dimensions.items():
        if method(study).make is None and dimension.kind != "choice":
            refuse("search", f"{name} is {dimension.kind}; write {name}=choice(a, b, …)")
    screens = policy(study).screens
    if study.keep and not screens:
        refuse("keep", f"the scheduler {study.scheduler} screens nothing; leave it out")
    if study.keep and study.keep < (study.confirm or 0):
        refuse("confirm", f"keep is {study.keep}; raise keep, or confirm fewer")
    varied = {*dimensions}.union(
        *(read_try(text, base, study.workers_per_trial) for text in study.tries)
    )
    if "seed" in varied and study.confirm != 0:
        refuse("seed", "a confirmation has seeds of its own; use --confirm 0")
    if "epochs" in varied and screens:
        refuse("epochs", f"the scheduler {study.scheduler} compares all after 1 epoch; use fifo")
    if "precision" in varied and study.base and base.precision == "auto":
        refuse(
            "precision",
            "the base recipe's is auto, which is one of them; add --precision fp32, or --no-base",
        )
    if study.confirm_base and not study.base:
        refuse("confirm_base", "the base recipe is left out; take back one of the two")
    if study.confirm_base and study.confirm == 0:
        refuse("confirm_base", "confirm is 0; raise it")


def lag(study: TuneConfig) -> int:
    """Trials that a sampler that learns looks past, and so how many may run at a time: that many
    when asked."""
    return max(LAG, study.max_concurrent or 0)


class Sampler:
    """Gives one configuration after the other, and none twice; the same seed the same ones, however
    many trials run at a time. The base recipe comes first, then those that the user wants tried.

    A space with at most LISTED combinations is listed, so that it can be walked to its end. For tpe
    there is a rule: configuration i is chosen knowing the outcomes of all trials but the `lag`
    before it, also of those that happen to have ended already.

    Raises UserError where the space has no valid configuration, or too few or too many for what is
    asked.
    """

    def __init__(self, study: TuneConfig, dimensions: dict[str, Dimension], base: Recipe) -> None:
        self.base, self.dimensions, self.workers = base, dimensions, study.workers_per_trial
        self.distributions = {name: dim.distribution() for name, dim in dimensions.items()}
        self.remarks: list[str] = []
        """What to say of the space before the study begins."""
        self.origins: list[str] = []
        self.known: set[Hashable] = set()
        self.first = self._first(study)
        how = method(study)
        self.rest = self._listed(grid=how.make is None)
        self.count = study.num_trials or 6
        if self.rest is not None:
            there = len(self.first) + len(self.rest)
            if how.make is None:
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
            if how.make:
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
        self.learns = how.learns
        self.lag = lag(study) if self.learns else self.count
        if how.make:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would name its own study
            sampler = how.make(base.seed, self.count)
            self.optuna = optuna.create_study(direction="maximize", sampler=sampler)
            self.failed = optuna.trial.TrialState.FAIL
        self.asked: list[int | None] = []
        """Optuna's number of each configuration that it proposed; None for the first ones."""
        self.told = 0

    def _first(self, study: TuneConfig) -> list[dict[str, Any]]:
        """The base recipe's values in the space, and those that the user wants tried."""
        first = []
        wanted = [("base", dict[str, Any]())] if study.base else []
        wanted += [("try", read_try(text, self.base, self.workers)) for text in study.tries]
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
        return identity(_valid(self.base, values, self.workers))

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
            self.optuna.tell(asked, state=self.failed)
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
            self.optuna.tell(asked, state=self.failed)
        raise UserError(f"space has no further configuration: {ATTEMPTS} proposals were none.")


def space_of(study: TuneConfig) -> dict[str, str]:
    """The search space of a study as written, or the default one: dropout, lr and momentum."""
    return study.space or (DEFAULT_SPACE if method(study).make else DEFAULT_GRID)


def sampler(study: TuneConfig, base: Recipe) -> Sampler:
    """The sampler of a study around the recipe `base`; raises UserError where the study's settings
    contradict each other, its space or the recipe."""
    dimensions = parse(space_of(study), base, study.workers_per_trial)
    check(study, dimensions, base)
    return Sampler(study, dimensions, base)


def _as_seen(
    values: dict[str, Any], dimensions: dict[str, Dimension], accuracy: float
) -> "FrozenTrial":
    """A trial with `values` as Optuna would have recorded it. Values may lie outside a range, which
    Optuna can learn from; what no sample could be, such as another choice, is left out."""
    from optuna.trial import create_trial

    wide = {name: dimension.reaching(values[name]) for name, dimension in dimensions.items()}
    distributions = {name: each.distribution() for name, each in wide.items() if each}
    params = {name: values[name] for name in distributions}
    return create_trial(params=params, distributions=distributions, value=accuracy)
