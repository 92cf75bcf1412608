"""Search spaces as people write them, and search algorithms and schedulers by name."""

import contextlib
import math
import re
import typing
from typing import Any, NamedTuple

import optuna
import yaml
from optuna.samplers import TPESampler
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm
from ray.tune.search.optuna import OptunaSearch

from mnist_ray.config import UNREADABLE, TrainConfig, TuneConfig
from mnist_ray.errors import UserError

METRIC = "holdout_accuracy"

FIXED = ("holdout", "num_workers", "cpus_per_worker", "use_gpu")
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
            raise UserError(f"space has {name}, but can only have {', '.join(known)}.")
        dimension = dimensions[name] = _parse_one(name, text)
        annotation = TrainConfig.model_fields[name].annotation
        needed = {"uniform": float, "loguniform": float, "randint": int}.get(dimension.kind)
        types = typing.get_args(annotation) or (annotation,)
        if needed and needed not in types:
            kinds = "uniform, loguniform or choice" if float in types else "choice"
            kinds = "randint or choice" if int in types else kinds
            raise UserError(f"space has {name}={text}, but {name} takes {kinds}.")
        try:
            checked = tuple(
                getattr(base.replace(**{name: value}), name) for value in dimension.values
            )
        except UserError as error:
            raise UserError(f"space has {name}={text}: {error}") from None
        if dimension.kind == "choice":
            dimensions[name] = Dimension("choice", checked)  # in the field's own type
    return dimensions


def _parse_one(name: str, text: str) -> Dimension:
    wrong = f"space has {name}={text}, but "
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
    if not match or match[1] not in ("uniform", "loguniform", "randint", "choice"):
        raise UserError(
            f"{wrong}must be uniform(a, b), loguniform(a, b), randint(a, b) or choice(a, …)."
        )
    kind = match[1]
    try:
        values = [_read(value) for value in yaml.safe_load(f"[{match[2]}]")]
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


def _read(value: Any) -> Any:
    """YAML takes 1e-3 for text; people do not."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


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


def param_space(study: TuneConfig, dimensions: dict[str, Dimension]) -> dict[str, Any]:
    """The space in Ray Tune's terms."""

    def domain(dimension: Dimension) -> Any:
        kind, values = dimension
        if kind == "choice":
            return tune.grid_search(list(values)) if study.search == "grid" else tune.choice(values)
        if kind == "randint":
            return tune.randint(values[0], values[1] + 1)
        return getattr(tune, kind)(*values)

    return {name: domain(dimension) for name, dimension in dimensions.items()}


def algorithm(study: TuneConfig, seed: int, num_trials: int, concurrent: int) -> SearchAlgorithm:
    """The search algorithm, with at most `concurrent` trials at a time; the same seed samples the
    same configurations."""
    if study.search == "tpe":
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would name its own study
        # Bergstra et al., NeurIPS 2011: model the better trials, once there are a few at random.
        sampler = TPESampler(seed=seed, n_startup_trials=max(4, num_trials // 4))
        tpe = OptunaSearch(metric=METRIC, mode="max", sampler=sampler)
        return ConcurrencyLimiter(tpe, max_concurrent=concurrent)
    # Tune's own max_concurrent_trials does not reach this generator.
    return BasicVariantGenerator(random_state=seed, max_concurrent=concurrent)


class Asha(ASHAScheduler):  # type: ignore[misc]
    """ASHA (Li et al., arXiv:1810.05934): after 1, 3, 9, … epochs only the best third go on.

    Never stops a trial at its last epoch, where it ends by itself: Ray Train leaks the resources of
    a run that is killed while it shuts down, and the next trial would wait for them for ever.
    """

    def __init__(self, max_epochs: int) -> None:
        super().__init__(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            max_t=max_epochs,
            grace_period=1,
            reduction_factor=3,
        )

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(controller, trial, result)
        return self.CONTINUE if result["last"] else decision


def scheduler(study: TuneConfig, max_epochs: int) -> TrialScheduler:
    """When to stop a trial."""
    if study.scheduler == "fifo" or max_epochs == 1:
        return FIFOScheduler()
    return Asha(max_epochs)


def max_epochs(dimensions: dict[str, Dimension], base: TrainConfig) -> int:
    """The most epochs that any trial can have."""
    epochs = dimensions.get("epochs")
    return max(epochs.values) if epochs else base.epochs
