"""Another study that a new one starts from: its configurations and their accuracies."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from mnist_ray.config import Recipe
from mnist_ray.errors import UserError
from mnist_ray.search import outcome
from mnist_ray.search.dimension import Dimension
from mnist_ray.search.outcome import Phase, Row

TAKEN = 3
"""How many configurations of the other study are tried first, the best ones."""

NEVER_TAKEN = ("seed", "epochs", "precision")
"""Fields that the new study sets itself, unless they are dimensions of its space."""


class Known(NamedTuple):
    """A configuration of the other study: the number of its first trial, the trial's best accuracy
    on held-out images, and its values of the fields that the study varied."""

    trial: int
    accuracy: float
    values: dict[str, Any]


class Earlier(NamedTuple):
    """Another study: its name, its base recipe, and its configurations, the best first."""

    run: str
    recipe: dict[str, Any]
    trials: list[Known]

    def first(self, known: Known, dimensions: Mapping[str, Dimension]) -> dict[str, Any]:
        """Return the values with which a new study over `dimensions` tries the configuration. They
        may lie outside of its space, as those of a `--try` may."""
        values = {**{name: self.recipe[name] for name in dimensions}, **known.values}
        return {
            name: value
            for name, value in values.items()
            if name in dimensions or name not in NEVER_TAKEN
        }

    def inside(
        self, known: Known, dimensions: Mapping[str, Dimension], base: Recipe
    ) -> dict[str, Any] | None:
        """Return the values of the configuration in the space `dimensions` around `base`; None if
        it lies outside: beyond a range, or with another value of a field that is fixed here."""
        values = {**{name: self.recipe[name] for name in dimensions}, **known.values}
        for name, value in values.items():
            dimension = dimensions.get(name)
            if not (dimension.has(value) if dimension else value == getattr(base, name)):
                return None
        return {name: values[name] for name in dimensions}

    def conditions(self, dimensions: Mapping[str, Dimension], base: Recipe) -> str:
        """Name the fields that neither study varies and in which their recipes differ."""
        varied = {*dimensions, *(name for known in self.trials for name in known.values)}
        here = base.model_dump()
        return ", ".join(
            f"{name} {value} (here {here[name]})"
            for name, value in self.recipe.items()
            if name not in varied and value != here[name]
        )

    def start(
        self,
        dimensions: Mapping[str, Dimension],
        base: Recipe,
        given: Sequence[Hashable],
        identity: Callable[[dict[str, Any]], Hashable],
        learns: bool,
    ) -> "Start":
        """Choose what a new study over `dimensions`, around `base`, takes from this one. `given`
        are the identities of the configurations that it tries anyway, and `learns` says whether
        its sampler does. Raises UserError where no configuration is valid in the new study."""
        start, identities, inside = Start([], {}, [], []), list(given), 0
        reasons = []
        for known in self.trials:
            values = self.first(known, dimensions)
            try:
                same = identity(values)
            except UserError as error:
                reasons.append(str(error))
                continue
            if same not in identities and len(start.tried) < TAKEN:
                start.tried.append((known, values))
                identities.append(same)
            if same in identities:
                start.before.setdefault(identities.index(same), known.accuracy)
            if here := self.inside(known, dimensions, base):
                inside += 1
                if same not in identities:
                    start.known.append((here, known.accuracy))
        if len(reasons) == len(self.trials):
            raise UserError(
                f"start_from is {self.run}, but none of its configurations is valid with this"
                f" recipe: {reasons[0]}"
            )
        numbers = ", ".join(str(known.trial) for known, _ in start.tried)
        tried = f"tries its trials {numbers} first" if numbers else "its best are tried anyway"
        start.remarks.append(f"starts from {self.run}: {tried}")
        if differs := self.conditions(dimensions, base):
            start.remarks.append(f"{self.run} trained with {differs}")
        if learns:
            outside = len(self.trials) - inside
            start.remarks.append(
                f"learns from {len(start.known)} more of its configurations, with accuracies"
                " shifted by as much as those of the repeated ones differ"
                + (f"; {outside} lie outside this space" if outside else "")
            )
        return start


class Start(NamedTuple):
    """What a new study takes from another one."""

    tried: list[tuple[Known, dict[str, Any]]]
    """The configurations that it tries first, with their values."""
    before: dict[int, float]
    """The accuracies there of configurations that the new study tries first, by their numbers
    here: of those that it tries anyway, then of `tried`."""
    known: list[tuple[dict[str, Any], float]]
    """The values and accuracies of the others that lie in the new study's space."""
    remarks: list[str]
    """Sentences to print before the study starts."""


def configurations(
    rows: Sequence[Row], recipe: Mapping[str, Any], space: Sequence[str]
) -> list[Known]:
    """Return the configurations of a study with a result: first those that were confirmed, then
    those that were trained in full, then the others, each by falling accuracy.

    `rows` are its trials table, `recipe` its base recipe, and `space` the fields of its space.
    """
    by_number = {row["trial"]: row for row in rows}
    searched, screened = (outcome.ranked(rows, each) for each in (Phase.SEARCH, Phase.SCREEN))
    firsts = []
    for number in (*outcome.confirmed(rows), *searched, *screened):
        while (repeated := by_number[number]["repeats"]) is not None:
            number = repeated
        firsts.append(number)
    found = []
    for number in dict.fromkeys(firsts):
        row = by_number[number]
        if row["best_accuracy"] is None:
            continue
        of_phase = {"epochs"} if row["phase"] == Phase.SCREEN else set()
        names = [name for name in recipe if name not in (*Recipe.fixed, *of_phase)]
        named = {name: row[name] for name in names if name in space or row[name] != recipe[name]}
        found.append(Known(number, row["best_accuracy"], named))
    return found
